"""What the forms need beside the version is looked at before anything is opened."""

from importlib.util import find_spec

from pipelines import apart
from pipelines.config.schema import Config
from pipelines.errors import UserError

FIELD = "export.forms"
COMPRESSED = ("awq", "gptq", "fp8")


def check(config: Config) -> None:
    """Raises UserError naming what is missing."""
    forms = config.export.forms
    if len(set(forms)) < len(forms):
        raise UserError(f"{FIELD}: expected each form once, got {', '.join(forms)}")
    if any(form.startswith("gguf") for form in forms):
        apart.python("gguf", FIELD)
    if set(forms) & set(COMPRESSED):
        apart.python("quantize", FIELD)
    if "int8" in forms and find_spec("bitsandbytes") is None:
        raise UserError(f"{FIELD}: int8 needs the package bitsandbytes, which the extra gpu has")
