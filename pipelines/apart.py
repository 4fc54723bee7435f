"""Programs that can't share our environment: each has one of its own, beside ours, made by `make env-NAME`."""

from pathlib import Path

from pipelines.config.paths import PROJECT
from pipelines.errors import UserError

ENVIRONMENTS = {
    "vllm": "vLLM pins an older transformers",
    "quantize": "llm-compressor pins an older transformers",
    "gguf": "llama.cpp's converter and runtime are built from source",
}


def python(name: str, field: str) -> Path:
    """The environment's interpreter. Raises UserError naming the field that needs it where it isn't made."""
    found = folder(name) / "bin" / "python"
    if not found.exists():
        raise UserError(f"{field}: needs an environment of its own ({ENVIRONMENTS[name]}); run `make env-{name}` first")
    return found


def folder(name: str) -> Path:
    """Where the environment lies."""
    return PROJECT / f".venv-{name}"
