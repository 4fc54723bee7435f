"""llama.cpp's own quantisation of a GGUF file. `python llama_quantize.py SOURCE TARGET TYPE`, TYPE such as Q8_0."""

import ctypes
import sys

import llama_cpp


def main() -> None:
    """Writes TARGET; ends with llama.cpp's code where it refuses."""
    source, target, kind = sys.argv[1:]
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)))


if __name__ == "__main__":
    main()
