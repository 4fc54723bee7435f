"""Alarms: signs that the reward is being gamed, or that training has nothing left to learn from or goes astray.

What they watch is described by Skalse et al. 2022, "Defining and Characterizing Reward Hacking" (a second reward that
falls behind the first), and Yu et al. 2025, "DAPO", section 3 (entropy, length, groups without spread).
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.config import schema
from pipelines.errors import Refused

REFUSED = "audit/refused"
# Where TRL's log has what each alarm watches.
WATCHED = {
    "audit_gap": REFUSED,
    "zero_variance": "frac_reward_zero_std",
    "entropy": "entropy",
    "length_growth": "completions/mean_length",
    "clipped": "completions/clipped_ratio",
    "kl": "kl",
}
FROM_THE_START = ("audit_gap", "length_growth")  # compared with the first window


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm that is on: the value over the last window, beyond its limit."""

    name: str
    value: float
    limit: float
    stop: bool

    def __str__(self) -> str:
        side = "under" if self.name == "entropy" else "over"
        return f"{self.name} {self.value:.3g} is {side} its limit {self.limit:g}"


class Watch:
    """Averages each watched value over the last `window` logs and holds it against its limit."""

    def __init__(self, settings: schema.Watch) -> None:
        self._settings = settings
        self._last: dict[str, deque[float]] = {name: deque(maxlen=settings.window) for name in WATCHED}
        self._first: dict[str, float] = {}

    def observe(self, logs: Mapping[str, float]) -> list[Raised]:
        """The alarms that are on after this log. Nothing is raised before a window is full."""
        found = []
        for name, key in WATCHED.items():
            value = logs.get(key, math.nan)
            if not math.isnan(value):
                self._last[name].append(value)
            if (raised := self._raised(name)) is not None:
                found.append(raised)
        return found

    def _raised(self, name: str) -> Raised | None:
        alarm, last = getattr(self._settings, name), self._last[name]
        if len(last) < self._settings.window:
            return None
        now = sum(last) / len(last)
        first = self._first.setdefault(name, now)
        value = {"audit_gap": now - first, "length_growth": now / first if first else 1.0}.get(name, now)
        beyond = alarm.limit is not None and (value < alarm.limit if name == "entropy" else value > alarm.limit)
        return Raised(name, value, alarm.limit, alarm.stop) if beyond else None


def metrics_of(raised: list[Raised]) -> dict[str, float]:
    """Every alarm as a metric: 1 while it is on, else 0."""
    on = {alarm.name for alarm in raised}
    return {f"alarm/{name}": float(name in on) for name in WATCHED}


def stop_for(raised: list[Raised], step: int, window: int) -> None:
    """Raises Refused where an alarm that is on ends the run."""
    told = [str(alarm) for alarm in raised if alarm.stop]
    if told:
        raise Refused(
            f"step {step}: {'; '.join(told)} over the last {window} steps (grpo.watch). The rollouts so far are with "
            "the run; look at what earns reward in them, then change the verifier or the limit"
        )
