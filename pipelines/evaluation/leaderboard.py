"""Subjects of several evaluations of one held-out set, best first, each against the leader on the same rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.errors import UserError
from pipelines.evaluation.compare import Comparison
from pipelines.evaluation.findings import Setup, compared, measures_of, records_of, reliability_of
from pipelines.evaluation.measure import Measure
from pipelines.evaluation.record import Record
from pipelines.evaluation.suites import Observed, observed

LESS_IS_BETTER = (
    "over_refusal_rate",
    "unparsed_rate",
    "unfinished_rate",
    "num_errors",
    "attack_success_rate",
    "ece",
    "brier",
    "aurc",
    "latency",
    "mean_tokens",
    "peak_memory_gb",
    "dollars",
    "order_dependent",
)


@dataclass(frozen=True)
class Entry:
    """One subject of one run: its measures, what it is, and its difference from the leader (None for the leader)."""

    subject: str
    run_id: str
    begun: str
    about: Mapping[str, str]
    key: str
    measures: Mapping[str, Measure]
    against_leader: Comparison | None = None

    @property
    def measure(self) -> Measure:
        """The one that the leaderboard is sorted by."""
        return self.measures[self.key]

    def record(self) -> dict[str, Any]:
        """The entry as the leaderboard's file holds it."""
        found: dict[str, Any] = {
            "subject": self.subject,
            "run": self.run_id,
            "begun": self.begun,
            "about": dict(self.about),
            "metrics": {},
        }
        for measure in self.measures.values():
            found["metrics"] |= measure.metrics()
        if self.against_leader is not None:
            found["against_leader"] = self.against_leader.metrics(f"eval/{self.key}")
        return found


@dataclass(frozen=True)
class _Candidate:
    entry: Entry
    seen: Observed | None
    setup: Setup


@dataclass(frozen=True)
class Past:
    """One run of evaluate: its id, when it began, and what its table holds."""

    run_id: str
    begun: str
    records: Sequence[Record]
    setup: Setup


def leaderboard(runs: Iterable[Past], metric: str) -> list[Entry]:
    """The subjects of the runs (oldest first) by `metric`, an `eval/suite/name`.

    A subject that several runs judged counts once, as the newest says. Raises UserError where no subject has the
    metric.
    """
    key = metric.removeprefix("eval/")
    found: dict[tuple[tuple[str, str], ...], _Candidate] = {}
    names: set[str] = set()
    for past in runs:
        for one in _subjects(past, key):
            names |= {f"eval/{name}" for name in one.entry.measures}
            if key in one.entry.measures:
                found[tuple(sorted(one.entry.about.items()))] = one
    if not found:
        raise UserError(f"compare.metric: no subject has {metric}{did_you_mean(metric, sorted(names))}")
    sign = 1 if _less_is_better(key) else -1
    ordered = sorted(
        found.values(), key=lambda one: (sign * one.entry.measure.value, one.entry.begun, one.entry.run_id)
    )
    leader = ordered[0]
    return [leader.entry, *(_against(one, leader) for one in ordered[1:])]


def _less_is_better(key: str) -> bool:
    return key.partition("/")[2].startswith(LESS_IS_BETTER)


def _subjects(past: Past, key: str) -> Iterator[_Candidate]:
    setup = past.setup
    for name, about in setup.subjects.items():
        records = records_of(past.records, name)
        seen = observed(records, setup.pass_at, setup.tasks)
        # How sure a subject is takes longest to measure.
        sure = reliability_of(name, records, setup) if key.startswith("calibration/") else None
        measures = {one.key: one for one in measures_of(name, records, seen, sure, setup)}
        entry = Entry(name, past.run_id, past.begun, about, key, measures)
        yield _Candidate(entry, next((one for one in seen if one.key == key), None), setup)


def _against(one: _Candidate, leader: _Candidate) -> Entry:
    """The entry with its difference from the leader, where the metric is made of observations."""
    entry = one.entry
    difference = compared(one.seen, leader.seen, one.setup) if one.seen and leader.seen else None
    return replace(entry, against_leader=difference)
