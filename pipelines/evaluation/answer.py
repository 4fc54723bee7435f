"""What a subject (the base or the adapter) answered to one row, and which rows it belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.row import Row
from pipelines.errors import DataError


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated completion with its verdict.

    `correct` is the task's verdict, `parsed` the label it read out of `text` (None where it read
    no known one), `num_tokens` counts generated tokens, and `finished` is false where the answer
    ran into the limit of new tokens.
    """

    row_id: str
    text: str
    correct: bool
    parsed: str | None
    num_tokens: int
    finished: bool


def aligned(rows: Sequence[Row], answers: Sequence[Answer]) -> list[tuple[Row, Answer]]:
    """Rows with their answers; raises DataError unless there is one answer per row in the rows' order."""
    if len(rows) != len(answers):
        raise DataError(f"expected one answer per row: {len(rows)} rows, got {len(answers)} answers")
    for position, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        if row.id != answer.row_id:
            raise DataError(f"answer {position} belongs to row {answer.row_id!r}, expected row {row.id!r}")
    return list(zip(rows, answers, strict=True))


def query(row: Row) -> str:
    """The text that the completion answers: the prompt's last message."""
    return str(row.prompt[-1]["content"])


def answers_table(rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """One flat record per row: what was asked and expected, and each subject's text and verdict."""
    records: list[dict[str, Any]] = [
        {
            "row_id": row.id,
            "source": row.source,
            "label": row.label,
            "prompt": query(row),
            "expected": row.answer,
        }
        for row in rows
    ]
    for subject, given in answers.items():
        for record, (_, answer) in zip(records, aligned(rows, given), strict=True):
            record[subject] = answer.text
            record[f"{subject}_correct"] = answer.correct
    return records
