"""Answers -> rewards: verified outside this process, shaped, and a share of what was accepted looked at again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.config.schema import Grpo
from pipelines.dataset.row import Row
from pipelines.rewards.parts import Answer, values_of, weights_of
from pipelines.verification import Outcome, Verification

# The trainer averages in float32. On this grid sums are exact, so that answers that are worth the same have no
# advantage at all; off it, rounding divided by a spread of nothing is one.
GRID = 2**16


@dataclass(frozen=True, slots=True)
class Scored:
    """What one answer is worth.

    `parts` and `reward` are None where the verifier failed: nothing is known of the answer, and nothing is learnt from
    it. `confirmed` is what the audit said, None where it wasn't asked.
    """

    outcome: Outcome
    parts: dict[str, float] | None
    reward: float | None
    confirmed: bool | None = None

    @property
    def told(self) -> str:
        """right, wrong, or how the verifier failed."""
        verdict = self.outcome.verdict
        return str(self.outcome.failure) if verdict is None else "right" if verdict.correct else "wrong"


class Scorer:
    """Scores answers by the task's verify and the parts that have a weight; `audit` is the stricter second verify."""

    def __init__(
        self, settings: Grpo, verification: Verification, audit: Verification | None, limit: int, seed: int
    ) -> None:
        self._values = values_of(settings.rewards, limit)
        self._verification, self._audit = verification, audit
        self._share, self._seed = settings.watch.audit_share, seed
        self.weights = weights_of(settings.rewards)

    def score(self, answers: Sequence[Answer], rows: Sequence[Row], step: int) -> list[Scored]:
        """Each answer's worth. Raises UserError where too many verifiers fail."""
        outcomes = self._verification.check([answer.text for answer in answers], rows)
        confirmed = self._confirmed(answers, rows, outcomes, step)
        return [
            self._scored(answer, row, outcome, confirmed.get(number))
            for number, (answer, row, outcome) in enumerate(zip(answers, rows, outcomes, strict=True))
        ]

    def _scored(self, answer: Answer, row: Row, outcome: Outcome, confirmed: bool | None) -> Scored:
        verdict = outcome.verdict
        if verdict is None:
            return Scored(outcome, None, None)
        parts = {name: value(answer, row, verdict) for name, value in self._values.items()}
        total = sum(self.weights[name] * value for name, value in parts.items())
        return Scored(outcome, parts, round(total * GRID) / GRID, confirmed)

    def _confirmed(
        self, answers: Sequence[Answer], rows: Sequence[Row], outcomes: Sequence[Outcome], step: int
    ) -> dict[int, bool]:
        """What the audit says of a sample of the accepted answers, by number."""
        if self._audit is None:
            return {}
        accepted = [number for number, o in enumerate(outcomes) if o.verdict is not None and o.verdict.correct]
        # A sample of each step's own, so that it doesn't matter which steps were made before a restart.
        chosen = random.Random(f"{self._seed} {step}").sample(accepted, round(self._share * len(accepted)))
        found = self._audit.check([answers[n].text for n in chosen], [rows[n] for n in chosen])
        return {n: o.verdict.correct for n, o in zip(chosen, found, strict=True) if o.verdict is not None}
