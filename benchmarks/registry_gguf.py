"""Whether the default model's GGUF export answers in llama.cpp as its adapter does, greedy token by greedy token."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.flow import about, run_stages
from pipelines import apart
from pipelines.config.paths import PROJECT

STEPS = 120  # enough to answer intents; every step more says nothing more about the file
ROWS = 400
FORMS = ("gguf", "gguf_adapter")


def measure(temporary: Path) -> dict[str, Any]:
    """Trains an adapter of the default model for a while, exports it, and compares the greedy tokens of held-out rows.

    `gguf_identical` is true where all are the same, else the share of rows. Makes .venv-gguf where it isn't there.
    """
    _environment()
    words = [f"sft.trainer.max_steps={STEPS}", f"evaluate.max_rows={ROWS}"]
    words += [f"export.forms=[{','.join(FORMS)}]", f"export.identity_rows={ROWS}"]
    _say("training an adapter of the default model and exporting it")
    run_stages(temporary, words, ("prepare", "sft", "evaluate", "package", "export"))
    forms = about(temporary / "outputs" / "export")["forms"]
    whole = forms["gguf"]["identity"]
    same = whole["equal"] == whole["rows"]
    return {
        "gguf_identical": True if same else whole["equal"] / whole["rows"],
        "gguf_rows": whole["rows"],
        "gguf_first_differences": json.dumps(whole["first"]),
        "gguf_adapter_identical": f"{forms['gguf_adapter']['identity']['equal']}/{whole['rows']}",
        "gguf_accuracy": forms["gguf"]["accuracy"],
        "gguf_difference": forms["gguf"]["difference"],
    }


def _environment() -> None:
    if (apart.folder("gguf") / ".installed").exists():
        return
    _say("making .venv-gguf (llama.cpp is built from source where pip's cache has no wheel: 8 minutes on 2 cores)")
    make = ["make", "env-gguf", f"PYTHON={sys.executable}"]
    subprocess.run(make, cwd=PROJECT, check=True, stdout=sys.stderr, env=os.environ)


def _say(text: str) -> None:
    print(f"  {text} ...", file=sys.stderr, flush=True)
