"""One subject's scores on the held-out rows."""

from collections.abc import Sequence

from pipelines.dataset.row import Row
from pipelines.evaluation.answer import Answer, aligned
from pipelines.interval import wilson

DEFINITIONS: dict[str, str] = {
    "accuracy": "Share of the in-scope rows whose answer the task's verifier accepts.",
    "num_in_scope": "Rows whose expected answer is not the decline label; all rows in a task without one.",
    "decline_rate": "Share of the out-of-scope rows that get the decline label. More is better.",
    "over_refusal_rate": "Share of the in-scope rows that get the decline label. Less is better.",
    "num_out_of_scope": "Rows whose expected answer is the decline label.",
    "unparsed_rate": "Share of all rows from whose answer the verifier reads no known label.",
    "mean_tokens": "Generated tokens per answer, mean over all rows.",
    "unfinished_rate": "Share of all rows whose answer was cut off at the limit of new tokens.",
}


def in_scope(row: Row, decline_label: str | None) -> bool:
    """Whether the row expects a real answer; every row does in a task without a decline label."""
    return decline_label is None or row.answer != decline_label


def score(rows: Sequence[Row], answers: Sequence[Answer], decline_label: str | None) -> dict[str, float]:
    """The metrics of `DEFINITIONS`; a metric without rows is left out, so that none is NaN.

    Rates are shares of 1, each with the bounds of its 95 % Wilson interval as `_low` and `_high`.
    accuracy: in-scope rows with `correct`. decline_rate, over_refusal_rate: out-of-scope and
    in-scope rows with `parsed` equal to the decline label; a task without one has neither.
    unparsed_rate: rows with `parsed` None. mean_tokens: mean `num_tokens`. unfinished_rate: rows
    with `finished` false. num_in_scope, num_out_of_scope: counts of rows.
    """
    pairs = aligned(rows, answers)
    inside = [answer for row, answer in pairs if in_scope(row, decline_label)]
    outside = [answer for row, answer in pairs if not in_scope(row, decline_label)]
    metrics: dict[str, float] = {"num_in_scope": len(inside), "num_out_of_scope": len(outside)}
    metrics |= _rate("accuracy", [answer.correct for answer in inside])
    if decline_label is not None:
        metrics |= _rate("decline_rate", [answer.parsed == decline_label for answer in outside])
        metrics |= _rate("over_refusal_rate", [answer.parsed == decline_label for answer in inside])
    metrics |= _rate("unparsed_rate", [answer.parsed is None for answer in answers])
    metrics |= _rate("unfinished_rate", [not answer.finished for answer in answers])
    if answers:
        metrics["mean_tokens"] = sum(answer.num_tokens for answer in answers) / len(answers)
    return metrics


def _rate(name: str, outcomes: Sequence[bool]) -> dict[str, float]:
    return wilson(sum(outcomes), len(outcomes)).metrics(name) if outcomes else {}
