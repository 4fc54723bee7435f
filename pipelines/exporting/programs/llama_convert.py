"""llama.cpp's own converters, told which pre-tokenizer a vocabulary has that they don't know by its hash.

`python llama_convert.py CONVERTER PRE SCRIPT ARGUMENTS...`: CONVERTER is the folder of the scripts, PRE a name of
llama.cpp's or `-`. Ends with code 3 where neither the converter nor PRE names the pre-tokenizer.
"""

import runpy
import sys
from typing import Any

UNNAMED = 3


def main() -> None:
    """Runs the script in this process."""
    converter, pre, script, *arguments = sys.argv[1:]
    sys.path.insert(0, converter)
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            if pre == "-":
                sys.exit(UNNAMED)
            return pre

    TextModel.get_vocab_base_pre = named
    sys.argv = [script, *arguments]
    runpy.run_path(f"{converter}/{script}", run_name="__main__")


if __name__ == "__main__":
    main()
