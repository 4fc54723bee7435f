"""How often a policy answers each row right, sampled.

A row that it always or never gets right gives a policy gradient nothing to learn from: its group of samples has no
difference in reward (Yu et al. 2025, "DAPO", section 3.2, dynamic sampling).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.row import Row
from pipelines.policy.template import render
from pipelines.verification import Verification


@dataclass(frozen=True)
class Sampler:
    """A loaded policy, the switches of its template, and how `count` answers to each row are drawn."""

    model: Any
    tokenizer: Any
    template: Mapping[str, Any]
    batch_size: int
    count: int
    max_new_tokens: int
    temperature: float
    seed: int

    def passed(self, rows: Sequence[Row], verified: Verification, done: Callable[[int], None]) -> list[tuple[int, int]]:
        """How many samples of each row are right, and how many have a verdict. Raises UserError as verifiers do."""
        from pipelines.policy.chat import Decoding, generate

        tools = [row.tools for row in rows]
        prompts = render(self.tokenizer, [row.prompt for row in rows], tools, self.template, prompt=True)
        # Each batch of rows has a seed of its own, or all would draw the same numbers.
        decoding = Decoding(self.max_new_tokens, self.temperature, self.seed ^ int(rows[0].id, 16) & 0xFFFFFFFF)
        repeated = [prompt for prompt in prompts for _ in range(self.count)]
        answers = generate(self.model, self.tokenizer, repeated, decoding, self.batch_size)
        done(len(rows))
        outcomes = verified.check([answer.text for answer in answers], [r for r in rows for _ in range(self.count)])
        verdicts = [outcome.verdict for outcome in outcomes]
        by_row = [
            [v for v in verdicts[at : at + self.count] if v is not None] for at in range(0, len(verdicts), self.count)
        ]
        return [(sum(verdict.correct for verdict in found), len(found)) for found in by_row]


def in_band(passed: tuple[int, int], low: float, high: float) -> bool:
    """Whether the rate lies between the bounds; a row none of whose answers has a verdict stays."""
    right, judged = passed
    return not judged or low <= right / judged <= high
