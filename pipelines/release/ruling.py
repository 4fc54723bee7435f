"""One rule of a policy, applied."""

import math
from dataclasses import dataclass

LARGEST = 1e300  # MLflow stores an infinite metric as 1.8e308


@dataclass(frozen=True)
class Ruling:
    """What a rule looks at, what is asked, what is found (None for nothing), whether it passes, and why it is asked."""

    name: str
    about: str
    asked: str
    found: float | str | None
    passed: bool
    reason: str

    def __str__(self) -> str:
        shown = "missing" if self.found is None else self.found if isinstance(self.found, str) else f"{self.found:.4f}"
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.about} = {shown}, asked {self.asked}"


def is_usable(value: float | None) -> bool:
    """Whether a metric is there and finite."""
    return value is not None and math.isfinite(value) and abs(value) < LARGEST
