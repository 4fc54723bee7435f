"""One number of one subject, with its interval, its sample and its unit."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "count", "seconds", "tokens", "tokens/s", "USD", "GB", "score"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric `suite/name`: its value, 95 % bounds where it has some, and the rows it rests on.

    `of` says what `num_rows` counts. Shares are of 1.
    """

    suite: str
    name: str
    value: float
    low: float | None
    high: float | None
    num_rows: int
    of: str
    unit: Unit = "share"

    @property
    def key(self) -> str:
        return f"{self.suite}/{self.name}"

    def metrics(self) -> dict[str, float]:
        """As MLflow metrics: `eval/<suite>/<name>`, with `_low` and `_high` where there are bounds."""
        found = {f"eval/{self.key}": self.value}
        if self.low is not None and self.high is not None:
            found |= {f"eval/{self.key}_low": self.low, f"eval/{self.key}_high": self.high}
        return found


def plain(suite: str, name: str, value: float, num_rows: int, of: str, unit: Unit) -> Measure:
    """A number without bounds."""
    return Measure(suite, name, value, None, None, num_rows, of, unit)
