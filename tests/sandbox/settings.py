"""The shipped settings of the sandbox, some of them changed."""

from typing import Any

import yaml

from pipelines.config import schema
from pipelines.config.paths import CONF


def sandbox_settings(**changes: Any) -> schema.Sandbox:
    block = yaml.safe_load((CONF / "verifier.yaml").read_text(encoding="utf-8"))["sandbox"]
    return schema.Sandbox.model_validate({**block, **changes})
