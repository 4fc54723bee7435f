"""The subjects label by label, and what the worst labels are mistaken for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.record import Record
from pipelines.interval import Interval, rate

OTHER = "other label"
UNREAD = "no label read"
NUM_OTHERS = 6


@dataclass(frozen=True, slots=True)
class Result:
    """A subject on one label's rows: accuracy of those it answered, its most frequent wrong answer, how often it came.

    `wrong` is `UNREAD` where the verifier mostly read no label, and None without wrong answers.
    """

    accuracy: Interval
    num_rows: int
    wrong: str | None
    num_wrong: int


@dataclass(frozen=True, slots=True)
class Intent:
    """One label and each subject's result on its rows; a subject that answered none of them has no result."""

    label: str
    results: dict[str, Result]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of (true label, answered): a row per label, a column per answer.

    Columns are the labels, the most frequent other answers by name, `OTHER` for the rest and
    `UNREAD`.
    """

    labels: list[str]
    columns: list[str]
    counts: NDArray[np.int64]


def intent_table(answers: Mapping[str, Sequence[Record]], resamples: int, seed: int) -> list[Intent]:
    """One `Intent` per label, by name; records that are not judged count for nothing.

    Intervals as `pipelines.interval.rate` has them.
    """
    by_label: dict[str, dict[str, list[Record]]] = {}
    for subject, given in answers.items():
        for record in given:
            if record.correct is not None:
                by_label.setdefault(record.label, {}).setdefault(subject, []).append(record)
    return [
        Intent(label, {subject: _result(chosen, resamples, seed) for subject, chosen in found.items()})
        for label, found in sorted(by_label.items())
    ]


def worst(table: Sequence[Intent], k: int, subject: str) -> list[Intent]:
    """The up to `k` labels of lowest accuracy, worst first, more rows first among equals.

    Labels without a wrong answer are left out.
    """
    wrong = [(intent.results[subject], intent) for intent in table if subject in intent.results]
    wrong = [(result, intent) for result, intent in wrong if result.accuracy.value < 1]
    wrong.sort(key=lambda pair: (pair[0].accuracy.value, -pair[0].num_rows, pair[1].label))
    return [intent for _, intent in wrong[:k]]


def confusion(answers: Sequence[Record], labels: Sequence[str]) -> Confusion:
    """What the rows of `labels` were answered with; labels that no record has are left with zeros.

    A correct answer counts for its row's label, because a task may expect an answer that is
    spelled otherwise.
    """
    shown = [record for record in answers if record.label in labels and record.correct is not None]
    pairs = [(record.label, _answered(record)) for record in shown]
    others = Counter(answered for _, answered in pairs if answered not in labels and answered != UNREAD)
    named = [name for name, count in _by_frequency(others)[:NUM_OTHERS] if count > 1]
    columns = [*labels, *named, OTHER, UNREAD]
    counts = np.zeros((len(labels), len(columns)), dtype=np.int64)
    for label, answered in pairs:
        column = columns.index(answered if answered in columns else OTHER)
        counts[labels.index(label), column] += 1
    return Confusion(list(labels), columns, counts)


def _result(records: Sequence[Record], resamples: int, seed: int) -> Result:
    wrong = Counter(_answered(record) for record in records if not record.correct)
    accuracy = rate([bool(r.correct) for r in records], [r.group for r in records], resamples, seed)
    name, count = next(iter(_by_frequency(wrong)), (None, 0))
    return Result(accuracy, len(records), name, count)


def _answered(record: Record) -> str:
    if record.correct:
        return record.label
    return UNREAD if record.parsed is None else record.parsed


def _by_frequency(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first, equals by name, so that the order doesn't hang on the rows' order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
