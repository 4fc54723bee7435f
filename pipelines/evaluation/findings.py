"""Everything that the table of records says: a function of the file alone, for metrics, report and leaderboard."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from pipelines.evaluation import (
    compare,
    faithfulness,
    judge,
    metrics,
    perturb,
    record,
    red_team,
    reliability,
    slices,
    suites,
)
from pipelines.evaluation.compare import Comparison, compare_values, compare_verdicts
from pipelines.evaluation.measure import Measure
from pipelines.evaluation.record import HELDOUT, Record
from pipelines.evaluation.reliability import Reliability, Sure
from pipelines.evaluation.slices import SliceTable
from pipelines.evaluation.suites import Observed, observed
from pipelines.interval import bootstrap_mean, rate

JUDGE = "judge"


@dataclass(frozen=True)
class Setup:
    """How the records came about and how they are read; it lies in the table's metadata.

    `subjects` names each subject by content, `clocks` holds what was measured beside the records (seconds, tokens,
    memory), `temperatures` each subject's, `confidence` how it was had. `options` are the labels that
    `Record.options` follows. `tasks` are suites of the harness. `notes` say what was left out, and why.
    """

    task: str
    rows_digest: str
    subjects: dict[str, dict[str, str]]
    candidate: str
    reference: str
    resamples: int
    seed: int
    pass_at: list[int]
    bins: int
    slices: list[str]
    min_rows: int
    tasks: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    clocks: dict[str, dict[str, float]] = field(default_factory=dict)
    temperatures: dict[str, float] = field(default_factory=dict)
    confidence: dict[str, str] = field(default_factory=dict)
    judge: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class Findings:
    """Measures by subject, the candidate's differences from each other subject by metric, and the parts of a report.

    `slices` are of all the candidate's judged held-out rows; `reliability` is there for subjects whose confidence is
    known.
    """

    setup: Setup
    records: Sequence[Record]
    measures: dict[str, list[Measure]]
    comparisons: dict[str, dict[str, Comparison]]
    reliability: dict[str, Reliability]
    slices: SliceTable

    @property
    def candidate(self) -> str:
        return self.setup.candidate

    def value(self, subject: str, key: str) -> Measure | None:
        """A subject's measure by `suite/name`; None where it has none."""
        return next((m for m in self.measures[subject] if m.key == key), None)

    def metrics(self, subject: str) -> dict[str, float]:
        """A subject's metrics as MLflow names them; the candidate's hold its differences too."""
        found: dict[str, float] = {}
        for measure in self.measures[subject]:
            found |= measure.metrics()
        if subject == self.candidate:
            found |= {f"eval/slices/{name}": value for name, value in self.slices.metrics().items()}
            for other, by_metric in self.comparisons.items():
                for key, comparison in by_metric.items():
                    found |= comparison.metrics(f"eval/{key}_vs_{other}")
        return found


def read(path: Path) -> tuple[list[Record], Setup]:
    """The records of a table that evaluate wrote, and how they came about."""
    records, about = record.read(path)
    return records, Setup.from_json(about["setup"])


def load(path: Path) -> "Findings":
    """The findings of such a table."""
    return find(*read(path))


def find(records: Sequence[Record], setup: Setup) -> Findings:
    """Measures everything; the same for the same records."""
    by_subject = {name: records_of(records, name) for name in setup.subjects}
    seen = {name: observed(given, setup.pass_at, setup.tasks) for name, given in by_subject.items()}
    sure = {name: reliability_of(name, given, setup) for name, given in by_subject.items()}
    known = {name: one for name, one in sure.items() if one is not None}
    measures = {
        name: measures_of(name, given, seen[name], known.get(name), setup) for name, given in by_subject.items()
    }
    others = [name for name in setup.subjects if name != setup.candidate]
    return Findings(
        setup=setup,
        records=records,
        measures=measures,
        comparisons={other: _comparisons(seen[setup.candidate], seen[other], setup) for other in others},
        reliability=known,
        slices=_slices(by_subject[setup.candidate], setup),
    )


def records_of(records: Sequence[Record], subject: str) -> list[Record]:
    """A subject's records, in their order."""
    return [record for record in records if record.subject == subject]


def measures_of(
    name: str, records: Sequence[Record], seen: Sequence[Observed], sure: Reliability | None, setup: Setup
) -> list[Measure]:
    """All measures of one subject; without those of its confidence where `sure` is None."""
    return [
        *[measured(one, setup) for one in seen],
        *suites.counts(records),
        *(sure.measures if sure else []),
        *judge.measures(records, setup.resamples, setup.seed),
        *suites.cost(records, setup.clocks.get(name, {})),
    ]


def measured(one: Observed, setup: Setup) -> Measure:
    """The mean of the observations with its interval: Wilson's for verdicts, or by clusters."""
    values, groups = [value for _, value in one.pairs], [r.group for r, _ in one.pairs]
    if one.verdicts:
        found = rate([bool(value) for value in values], groups, setup.resamples, setup.seed)
    else:
        found = bootstrap_mean(values, groups, setup.resamples, setup.seed, one.bounds)
    return Measure(one.suite, one.name, found.value, found.low, found.high, len(values), one.of, one.unit)


def _comparisons(candidate: Sequence[Observed], other: Sequence[Observed], setup: Setup) -> dict[str, Comparison]:
    """Candidate minus other on the observations that both have, by metric."""
    theirs = {one.key: one for one in other}
    found = {one.key: compared(one, theirs[one.key], setup) for one in candidate if one.key in theirs}
    return {key: comparison for key, comparison in found.items() if comparison is not None}


def compared(candidate: Observed, other: Observed, setup: Setup) -> Comparison | None:
    """The first minus the second on the observations that both have; None where they share none."""
    paired = _paired(candidate, other)
    if not paired:
        return None
    a, b, groups = (list(column) for column in zip(*paired, strict=True))
    if candidate.verdicts:
        return compare_verdicts([bool(x) for x in a], [bool(x) for x in b], groups, setup.resamples, setup.seed)
    return compare_values(a, b, groups, setup.resamples, setup.seed, candidate.bounds)


def _paired(candidate: Observed, other: Observed) -> list[tuple[float, float, str]]:
    """(other's value, candidate's value, group) of each row that both have."""
    theirs = {(r.row_id, r.kind): value for r, value in other.pairs}
    return [(theirs[r.row_id, r.kind], value, r.group) for r, value in candidate.pairs if (r.row_id, r.kind) in theirs]


def _slices(records: Sequence[Record], setup: Setup) -> SliceTable:
    heldout = [r for r in records if r.suite == HELDOUT]
    return slices.slices(heldout, setup.slices, setup.min_rows, setup.resamples, setup.seed)


def reliability_of(name: str, records: Sequence[Record], setup: Setup) -> Reliability | None:
    """What a subject's confidences are worth; None where it has none."""
    told = [
        (r.confidence, r.confidence if r.calibrated is None else r.calibrated, r.correct, r.group)
        for r in records
        if r.suite == HELDOUT and r.confidence is not None and r.correct is not None
    ]
    if not told:
        return None
    sure = Sure(*(list(column) for column in zip(*told, strict=True)))
    return reliability.reliability(sure, setup.temperatures.get(name), setup.bins, setup.resamples, setup.seed)


def definitions(findings: Findings) -> dict[str, str]:
    """What each metric that was measured means, with its source."""
    known = {
        **suites.DEFINITIONS,
        **{f"robustness/{name}": text for name, text in perturb.DEFINITIONS.items()},
        **{f"red_team/{name}": text for name, text in red_team.DEFINITIONS.items()},
        **{f"correctness/{name}": text for name, text in metrics.DEFINITIONS.items()},
        **{f"faithfulness/{name}": text for name, text in faithfulness.DEFINITIONS.items()},
        **{f"calibration/{name}": text for name, text in reliability.DEFINITIONS.items()},
        **{f"judge/{name}": text for name, text in judge.DEFINITIONS.items()},
    }
    measured = {m.key for given in findings.measures.values() for m in given}
    found = {key: text for key, text in known.items() if _defines(key, measured)}
    found |= slices.DEFINITIONS if findings.slices.slices else {}
    return found | (compare.DEFINITIONS if findings.comparisons else {})


def _defines(key: str, measured: Collection[str]) -> bool:
    """Whether a metric of that name, or of one that begins or ends as it does, was measured."""
    ending = key.partition("...")[2]
    return any(m == key or m.startswith(f"{key}_") or (ending and m.endswith(ending)) for m in measured)
