"""The subjects label by label, and what the worst labels are mistaken for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.row import Row
from pipelines.evaluation.answer import Answer, aligned
from pipelines.interval import Interval, wilson

OTHER = "other label"
UNREAD = "no label read"
NUM_OTHERS = 6


@dataclass(frozen=True, slots=True)
class Result:
    """A subject on one label's rows: accuracy, its most frequent wrong answer and how often it came.

    `wrong` is `UNREAD` where the verifier mostly read no label, and None without wrong answers.
    """

    accuracy: Interval
    wrong: str | None
    num_wrong: int


@dataclass(frozen=True, slots=True)
class Intent:
    """One label's rows and each subject's result on them."""

    label: str
    num_rows: int
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


def intent_table(rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]]) -> list[Intent]:
    """One `Intent` per label, by name."""
    positions: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        positions.setdefault(row.label, []).append(position)
    return [pooled(label, rows, answers, found) for label, found in sorted(positions.items())]


def pooled(
    label: str, rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]], positions: Sequence[int]
) -> Intent:
    """The rows at `positions`, at least one, as one `Intent` called `label`, whatever their own labels."""
    chosen = [rows[i] for i in positions]
    results = {name: _result(chosen, [given[i] for i in positions]) for name, given in answers.items()}
    return Intent(label, len(chosen), results)


def worst(table: Sequence[Intent], k: int, subject: str) -> list[Intent]:
    """The up to `k` labels of lowest accuracy, worst first, more rows first among equals.

    Labels without a wrong answer are left out.
    """
    wrong = [intent for intent in table if intent.results[subject].accuracy.value < 1]
    return sorted(wrong, key=lambda i: (i.results[subject].accuracy.value, -i.num_rows, i.label))[:k]


def confusion(rows: Sequence[Row], answers: Sequence[Answer], labels: Sequence[str]) -> Confusion:
    """What the rows of `labels` were answered with; labels that no row has are left with zeros.

    A correct answer counts for its row's label, because a task may expect an answer that is
    spelled otherwise.
    """
    shown = [(row, answer) for row, answer in aligned(rows, answers) if row.label in labels]
    pairs = [(row.label, _answered(row, answer)) for row, answer in shown]
    others = Counter(answered for _, answered in pairs if answered not in labels and answered != UNREAD)
    named = [name for name, count in _by_frequency(others)[:NUM_OTHERS] if count > 1]
    columns = [*labels, *named, OTHER, UNREAD]
    counts = np.zeros((len(labels), len(columns)), dtype=np.int64)
    for label, answered in pairs:
        column = columns.index(answered if answered in columns else OTHER)
        counts[labels.index(label), column] += 1
    return Confusion(list(labels), columns, counts)


def _result(rows: Sequence[Row], answers: Sequence[Answer]) -> Result:
    wrong = Counter(_answered(row, answer) for row, answer in aligned(rows, answers) if not answer.correct)
    accuracy = wilson(len(answers) - wrong.total(), len(answers))
    name, count = next(iter(_by_frequency(wrong)), (None, 0))
    return Result(accuracy, name, count)


def _answered(row: Row, answer: Answer) -> str:
    if answer.correct:
        return row.label
    return UNREAD if answer.parsed is None else answer.parsed


def _by_frequency(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first, equals by name, so that the order doesn't hang on the rows' order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
