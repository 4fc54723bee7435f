"""Where a verified version lies, and how it is asked; as one process tells another."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "TUNESMITH_ENGINE_KEY"  # the environment variable with the key that every request to our engine has to bring


@dataclass(frozen=True)
class Placed:
    """A version's verified files: the name that the engine knows it by, its adapter, its settings, its digest."""

    name: str
    adapter: Path
    settings: Mapping[str, Any]
    digest: str

    def as_json(self) -> dict[str, Any]:
        """As another process is told."""
        told = {"lora_name": self.name, "lora_path": str(self.adapter)}
        return {**told, "settings": dict(self.settings), "digest": self.digest}

    @staticmethod
    def of(told: Mapping[str, Any]) -> "Placed":
        """From `as_json`. Raises KeyError where a part is missing."""
        return Placed(told["lora_name"], Path(told["lora_path"]), told["settings"], told["digest"])
