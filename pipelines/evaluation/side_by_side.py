"""The held-out rows that a reader should see: what every subject answered to those that the candidate got wrong."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.row import text_of
from pipelines.evaluation.findings import Findings
from pipelines.evaluation.record import HELDOUT, Record


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One row: the last thing the user said, the expected answer, and each subject's record of it, if it has one."""

    row_id: str
    source: str
    label: str
    prompt: str
    expected: str
    answers: dict[str, Record | None]


def rows(findings: Findings) -> list[SideBySide]:
    """Every held-out row, in the order in which they were asked."""
    by_subject = {
        name: {r.row_id: r for r in findings.records if r.subject == name and r.suite == HELDOUT}
        for name in findings.setup.subjects
    }
    first = {row_id: record for given in by_subject.values() for row_id, record in given.items()}
    return [
        SideBySide(
            row_id=row_id,
            source=record.source,
            label=record.label,
            prompt=asked(record),
            expected=record.expected,
            answers={name: given.get(row_id) for name, given in by_subject.items()},
        )
        for row_id, record in first.items()
    ]


def asked(record: Record) -> str:
    """The last thing that the user said."""
    messages: list[dict[str, Any]] = json.loads(record.prompt)
    return next((text_of(message) for message in reversed(messages) if message["role"] == "user"), "")


def lost(
    table: Sequence[SideBySide], candidate: str, others: Sequence[str], metric: str | None, most: int
) -> list[SideBySide]:
    """The rows that one of the others has right and the candidate wrong, or that it has better by `metric`.

    The greatest losses come first, among equals those that the candidate is surest of.
    """

    def drop(row: SideBySide) -> float:
        return max((_drop(row.answers, candidate, other, metric) for other in others), default=0.0)

    found = [row for row in table if drop(row) > 0]
    return sorted(found, key=lambda row: (-drop(row), *_surest(row, candidate)))[:most]


def confidently_wrong(
    table: Sequence[SideBySide], candidate: str, without: Sequence[SideBySide], most: int
) -> list[SideBySide]:
    """The candidate's other wrong answers, those that it is surest of first."""
    seen = {row.row_id for row in without}
    wrong = [row for row in table if row.row_id not in seen and _score(row.answers[candidate], None) == 0]
    return sorted(wrong, key=lambda row: _surest(row, candidate))[:most]


def _drop(answers: Mapping[str, Record | None], candidate: str, other: str, metric: str | None) -> float:
    mine, theirs = _score(answers[candidate], metric), _score(answers.get(other), metric)
    return 0.0 if mine is None or theirs is None else theirs - mine


def _score(record: Record | None, metric: str | None) -> float | None:
    """The verdict as 1 or 0; where nothing judges, the metric's value; None where there is neither, as in errors."""
    if record is None:
        return None
    if record.correct is not None:
        return float(record.correct)
    return record.values.get(metric) if metric else None


def _surest(row: SideBySide, candidate: str) -> tuple[float, str]:
    record = row.answers[candidate]
    known = record.calibrated if record is not None and record.calibrated is not None else -1.0
    return -known, row.row_id
