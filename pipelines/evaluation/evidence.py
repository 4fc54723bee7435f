"""Everything the held-out rows say about base and adapter, measured once for metrics and report."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.dataset.row import Row
from pipelines.errors import DataError
from pipelines.evaluation.answer import Answer, aligned
from pipelines.evaluation.compare import Comparison, compare
from pipelines.evaluation.intents import Intent, intent_table, pooled, worst
from pipelines.evaluation.score import in_scope, score

BASE = "base"
ADAPTER = "adapter"
NUM_SAMPLES = 30


@dataclass(frozen=True, slots=True)
class Evidence:
    """Rows, both subjects' answers and what follows from them.

    `scores` per subject, `comparison` and `overall` on the in-scope rows, `intents` by label,
    `worst` the adapter's worst labels, `samples` positions of rows that the adapter has wrong.
    """

    rows: Sequence[Row]
    answers: Mapping[str, Sequence[Answer]]
    scores: dict[str, dict[str, float]]
    comparison: Comparison
    overall: Intent
    intents: list[Intent]
    worst: list[Intent]
    samples: list[int]


def gather(
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[Answer]],
    decline_label: str | None,
    num_worst: int,
    resamples: int,
    seed: int,
) -> Evidence:
    """Measure `answers["base"]` and `answers["adapter"]`, one answer per row; the same for the same seed.

    Raises DataError where answers don't match the rows or no row is in scope.
    """
    answers = {subject: answers[subject] for subject in (BASE, ADAPTER)}
    inside = [position for position, row in enumerate(rows) if in_scope(row, decline_label)]
    if not inside:
        raise DataError(f"no in-scope row to score: all {len(rows)} rows expect {decline_label!r}")
    scores = {subject: score(rows, given, decline_label) for subject, given in answers.items()}
    verdicts = {subject: [given[i].correct for i in inside] for subject, given in answers.items()}
    table = intent_table(rows, answers)
    return Evidence(
        rows=rows,
        answers=answers,
        scores=scores,
        comparison=compare(verdicts[BASE], verdicts[ADAPTER], resamples, seed),
        overall=pooled("all in scope", rows, answers, inside),
        intents=table,
        worst=worst(table, num_worst, ADAPTER),
        samples=_sample_wrong(rows, answers[ADAPTER], seed),
    )


def _sample_wrong(rows: Sequence[Row], answers: Sequence[Answer], seed: int) -> list[int]:
    wrong = [position for position, (_, answer) in enumerate(aligned(rows, answers)) if not answer.correct]
    return sorted(random.Random(seed).sample(wrong, min(NUM_SAMPLES, len(wrong))))
