"""A decision of promotion, whole: what was asked of whom, every rule with its value, and what came of it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.release.ruling import Ruling

FILE = "decision.json"
UNFORCEABLE = ("integrity", "race")  # bytes that changed, and an alias that someone else moved


@dataclass
class Decision:
    """Of `model` for `target` (`models:/name@alias`); `incumbent` held it when the decision began.

    `forced` is the reason why the gate is overruled, None where it isn't. `copy` is the version that holds the bytes
    in the target, once there is one. `signed` says by whom, when and in which run.
    """

    model: str
    target: str
    gate: str
    incumbent: str | None
    forced: str | None
    signed: Mapping[str, str]
    rulings: list[Ruling] = field(default_factory=list)
    registry: str | None = None
    digest: str | None = None
    copy: str | None = None

    @property
    def alias(self) -> str:
        return self.target.rpartition("@")[2]

    @property
    def failed(self) -> list[str]:
        """Names of the rules that don't pass."""
        return [ruling.name for ruling in self.rulings if not ruling.passed]

    @property
    def is_overruled(self) -> bool:
        """Whether the gate says no, and force may and does say yes."""
        return bool(self.failed) and self.forced is not None and not set(self.failed) & set(UNFORCEABLE)

    @property
    def is_yes(self) -> bool:
        return not self.failed or self.is_overruled

    @property
    def result(self) -> str:
        """In a few words."""
        if self.is_overruled:
            return f"forced to {self.alias}"
        return f"promoted to {self.alias}" if not self.failed else f"refused for {self.alias}"

    def as_json(self) -> str:
        told: dict[str, Any] = {
            **{name: value for name, value in asdict(self).items() if name not in ("rulings", "signed")},
            **self.signed,
            "result": self.result,
            "passed": not self.failed,
            "rules": [_plain(ruling) for ruling in self.rulings],
        }
        return json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def tags(self) -> dict[str, str]:
        """For the version; `gate.result` comes last."""
        told = {f"gate.{ruling.name}": str(ruling) for ruling in self.rulings}
        about = {"policy": self.gate, "run": self.signed["run"], "by": self.signed["by"], "at": self.signed["at"]}
        about |= {"forced": self.forced} if self.is_overruled and self.forced else {}
        about |= {"copy": self.copy} if self.copy and self.copy != self.model else {}
        return told | {f"gate.{name}": value for name, value in about.items()} | {"gate.result": self.result}


def _plain(ruling: Ruling) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    found = ruling.found
    usable = not isinstance(found, float) or math.isfinite(found)
    return asdict(ruling) | {"found": found if usable else str(found)}
