"""A loss that jumps: a step's loss held against the steps before it, by median and median absolute deviation.

Rule: Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers", the modified z-score, whose limit is 3.5 for
independent draws; losses of batches of unlike lengths are none, so the limit is a setting.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipelines.config.watching import LossWatch
from pipelines.errors import Refused

OF_NORMAL = 1.4826  # times this the median absolute deviation of a normal distribution is its standard deviation
LEAST = 0.02  # of the median: the least deviation that is reckoned with, or losses that hardly move would all be jumps

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Spike:
    """A step whose loss is over what the window before it allows."""

    step: int
    loss: float
    median: float
    limit: float

    def __str__(self) -> str:
        return f"loss {self.loss:.4g} is over {self.limit:.4g}, the median before it is {self.median:.4g}"


class Spikes:
    """Finds spikes and keeps a table of them: step, loss, what was allowed, and the rows of the step."""

    def __init__(self, settings: LossWatch, show: Callable[[Records], None], stage: str) -> None:
        """`show` gets all records found so far; `stage` is whose settings they are."""
        self._settings, self._show, self._field = settings, show, f"{stage}.watch"
        self._last: deque[float] = deque(maxlen=settings.window)
        self._records: list[dict[str, Any]] = []
        self.on = False

    def observe(self, step: int, loss: float) -> Spike | None:
        """The step's spike, if it is one. Nothing is one before a window is full."""
        alarm, last = self._settings.loss_spike, self._last
        spike = None
        if alarm.limit is not None and len(last) == self._settings.window:
            middle = median(last)
            deviation = OF_NORMAL * median(abs(value - middle) for value in last)
            limit = middle + alarm.limit * max(deviation, LEAST * abs(middle))
            spike = Spike(step, loss, middle, limit) if loss > limit else None
        last.append(loss)
        self.on = spike is not None
        return spike

    def tell(self, spike: Spike, rows: Sequence[str]) -> None:
        """Adds it to the table. Raises Refused where the alarm ends the run."""
        self._records.append(
            {"step": spike.step, "loss": spike.loss, "median": spike.median, "limit": spike.limit, "rows": list(rows)}
        )
        self._show(self._records)
        if self._settings.loss_spike.stop:
            raise Refused(
                f"step {spike.step}: {spike} ({self._field}.loss_spike). Its rows are in the table of spikes of the "
                "run; look at them, then leave them out or raise the limit"
            )
