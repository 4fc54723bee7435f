"""The parts of a reward: what each says of one answer, before it is clipped and weighed."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pipelines.config.schema import LanguagePart, LengthPart, Part, RepetitionPart, Rewards
from pipelines.dataset.row import Row, question
from pipelines.tasks.verdict import Verdict

CORRECT = "correct"


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion as the reward sees it: its text, its length in tokens, and whether the model ended it itself."""

    text: str
    num_tokens: int
    finished: bool

    @classmethod
    def of(cls, text: str, tokens: Sequence[int], ends: Container[int]) -> Self:
        """The answer that these tokens are; `ends` are the tokens that end one."""
        return cls(text, len(tokens), len(tokens) > 0 and tokens[-1] in ends)


Value = Callable[[Answer, Row, Verdict], float]


def values_of(rewards: Rewards, limit: int) -> Mapping[str, Value]:
    """Each part that has a weight, by name, clipped; `limit` is the most tokens that an answer may have."""
    found: dict[str, Value] = {CORRECT: lambda answer, row, verdict: float(verdict.correct)}
    makers: dict[str, Value] = {
        "format": lambda answer, row, verdict: float(verdict.parsed is not None),
        "length": lambda answer, row, verdict: length(answer, limit, rewards.length),
        "repetition": lambda answer, row, verdict: repetition(answer.text, rewards.repetition),
        "language": _language(rewards.language) if rewards.language.weight else lambda answer, row, verdict: 0.0,
    }
    return found | {name: _clipped(makers[name], part) for name, part in rewards.shaping.items()}


def weights_of(rewards: Rewards) -> dict[str, float]:
    """The weight of each part that has one, in the order of `values_of`."""
    return {CORRECT: rewards.correct.weight} | {name: part.weight for name, part in rewards.shaping.items()}


def length(answer: Answer, limit: int, part: LengthPart) -> float:
    """0 up to `soft_tokens` under the limit, then falling to -1 at the limit, where an answer is cut off.

    Method: Yu et al. 2025, "DAPO", section 3.4, equation 13 (soft overlong punishment).
    """
    soft = min(part.soft_tokens, limit)
    return -max(0.0, answer.num_tokens - (limit - soft)) / soft


def repetition(text: str, part: RepetitionPart) -> float:
    """Minus the share of the text's word n-grams that stand in it before; 0 where it is shorter than one.

    Method: Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs", appendix D (n-gram repetition
    penalty).
    """
    words = text.split()
    grams = [tuple(words[i : i + part.ngram]) for i in range(len(words) - part.ngram + 1)]
    return -(1 - len(set(grams)) / len(grams)) if grams else 0.0


def _language(part: LanguagePart) -> Value:
    from pipelines.dataset.language import Certainty

    certainty = Certainty()

    def value(answer: Answer, row: Row, verdict: Verdict) -> float:
        return certainty.of(answer.text, part.language or certainty.best(question(row.prompt)))

    return value


def _clipped(value: Value, part: Part) -> Value:
    return lambda answer, row, verdict: min(max(value(answer, row, verdict), part.low), part.high)
