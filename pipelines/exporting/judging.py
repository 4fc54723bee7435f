"""An exported form asked the held-out rows, and how it stands to the adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.evaluation.ask import Ask, Judged, chosen
from pipelines.evaluation.compare import compare_verdicts
from pipelines.evaluation.record import HELDOUT, Record
from pipelines.interval import Interval, are_shared, rate
from pipelines.progress import meter
from pipelines.subjects.playing import in_environment
from pipelines.subjects.subject import Question, Subject


@dataclass(frozen=True)
class Asked:
    """Whom the questions go to: all rows, those of them that are asked one at a time, how answers are judged."""

    rows: Sequence[Row]
    alone: Sequence[Row]
    judged: Judged
    limit: int


@dataclass(frozen=True)
class Answered:
    """The records of all rows, in their order, and the tokens a second of those asked one at a time."""

    records: Sequence[Record]
    tokens_per_s: float


@dataclass(frozen=True)
class Standing:
    """How a form stands: shares of 1 with 95 % intervals, None where nothing judges; `size` in bytes.

    `difference` is its accuracy minus the adapter's on the same rows, `same` the share of rows with the same text as
    the adapter's. `identity` compares greedy tokens with the adapter's, of GGUF files.
    """

    form: str
    size: int
    digest: str
    rows: int
    accuracy: Interval | None
    difference: Interval | None
    same: float
    tokens_per_s: float
    identity: dict[str, Any] | None = None
    note: str = ""

    def tag(self, heldout: str) -> dict[str, Any]:
        """What the registered version keeps, for a gate to ask for; `low` and `high` are the difference's."""
        accuracy, difference = self.accuracy, self.difference
        told = {
            "accuracy": accuracy and accuracy.value,
            "accuracy_low": accuracy and accuracy.low,
            "accuracy_high": accuracy and accuracy.high,
            "difference": difference and difference.value,
            "low": difference and difference.low,
            "high": difference and difference.high,
            "same": self.same,
            "rows": self.rows,
            "heldout": heldout,
            "size": self.size,
            "digest": self.digest,
        }
        if self.identity:
            told |= {"identical": self.identity["equal"], "identical_of": self.identity["rows"]}
        return told

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def asked_of(config: Config, rows: Sequence[Row], judged: Judged, limit: int) -> Asked:
    """The rows that `export` asks, drawn by the seed."""
    settings = config.export
    picked = chosen(rows, settings.max_rows, f"export {config.seed}") if settings.max_rows else list(rows)
    return Asked(picked, chosen(picked, settings.alone_rows, f"alone {config.seed}"), judged, limit)


def answers(config: Config, subject: Subject, asked: Asked) -> Answered:
    """Everything that the subject is asked."""
    playing = in_environment(subject, config.task)
    asks = [Ask(HELDOUT, "", row.prompt, row) for row in asked.rows]
    with meter(f"answers of {subject.name}", len(asks), "rows") as shown:
        replies = playing.answer([_question(row) for row in asked.rows], asked.limit, shown.advance)
    alone = playing.answer_alone([_question(row) for row in asked.alone], asked.limit, lambda count: None)
    seconds = sum(reply.latency_s or 0.0 for reply in alone)
    speed = sum(reply.num_tokens or 0 for reply in alone) / seconds if seconds else 0.0
    return Answered(asked.judged.records(asks, subject.name, replies), speed)


def standing(config: Config, found: Answered, adapter: Answered, files: Mapping[str, Any]) -> Standing:
    """The form's standing; `files` has its `form`, `size`, `digest`, and what else is known of it."""
    pairs = list(zip(adapter.records, found.records, strict=True))
    same = sum(a.answer == b.answer for a, b in pairs) / len(pairs)
    judged = [(a, b) for a, b in pairs if a.in_scope and a.correct is not None and b.correct is not None]
    accuracy, difference = None, None
    if judged:
        before, after = [bool(a.correct) for a, _ in judged], [bool(b.correct) for _, b in judged]
        named = [a.group for a, _ in judged]
        groups = named if are_shared(named) else None
        resamples = config.evaluate.resamples
        accuracy = rate(after, groups, resamples, config.seed)
        difference = compare_verdicts(before, after, groups, resamples, config.seed).difference
    return Standing(
        rows=len(judged) or len(pairs),
        accuracy=accuracy,
        difference=difference,
        same=same,
        tokens_per_s=found.tokens_per_s,
        **files,
    )


def _question(row: Row) -> Question:
    return Question(row.prompt, row.tools, row)
