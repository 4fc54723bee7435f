"""GGUF files by llama.cpp's own converters, in its own environment."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines import apart
from pipelines.errors import UserError
from pipelines.exporting.merging import scaled_config
from pipelines.exporting.pretokenizer import named
from pipelines.exporting.programs.llama_convert import UNNAMED

FIELD = "export.forms"
PROGRAMS = Path(__file__).parent / "programs"
QUANTISED = {"gguf_q8_0": "Q8_0", "gguf_q4_k_m": "Q4_K_M"}
F16 = "model-f16.gguf"


def converter() -> Path:
    """The folder of llama.cpp's converters. Raises UserError where the environment isn't made."""
    apart.python("gguf", FIELD)
    return apart.folder("gguf") / "llama.cpp"


def convert(model: Path, target: Path) -> None:
    """A model's folder as one F16 file. Raises UserError where llama.cpp knows no such model or tokenizer."""
    _converted(model, "convert_hf_to_gguf.py", str(model), "--outfile", str(target), "--outtype", "f16")


def convert_adapter(adapter: Path, base: Path, target: Path) -> None:
    """An adapter as a GGUF LoRA in F16, for the base whose folder is given. Raises UserError where it can't be one."""
    config = scaled_config(adapter)
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary) / "adapter"
        shutil.copytree(adapter, plain)
        (plain / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        paths = ("--base", str(base), "--outfile", str(target), "--outtype", "f16", str(plain))
        _converted(base, "convert_lora_to_gguf.py", *paths)


def quantise(source: Path, target: Path, kind: str) -> None:
    """A GGUF file in fewer bits. Raises UserError where llama.cpp refuses."""
    done = _run("llama_quantize.py", str(source), str(target), kind)
    if done.returncode:
        raise UserError(f"{FIELD}: llama.cpp can't write {target.name}: {_last(done.stderr)}")


def _converted(model: Path, script: str, *arguments: str) -> None:
    pre = named(model / "tokenizer.json") if (model / "tokenizer.json").is_file() else None
    done = _run("llama_convert.py", str(converter()), pre or "-", script, *arguments)
    if done.returncode == UNNAMED:
        raise UserError(f"{FIELD}: llama.cpp has no pre-tokenizer that cuts text as this model's tokenizer.json does")
    if done.returncode:
        raise UserError(f"{FIELD}: llama.cpp's {script} ended with code {done.returncode}: {_last(done.stderr)}")


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = [str(apart.python("gguf", FIELD)), "-I", str(PROGRAMS / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no word"
