"""What is judged: whatever answers questions, wherever it runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.row import Message, Row

Done = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Question:
    """What a subject is asked: chat messages, the tools it is offered, and the row behind it, if any."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    row: Row | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    `text` is None where there is an `error`: such a row is neither right nor wrong. Calls of tools stand in the
    text as `<tool_call>{"name": ..., "arguments": ...}</tool_call>`. `finished` is false where the answer ran into
    the limit of new tokens. `latency_s` is None where the row shared a batch, `cost` (US dollars) where nothing
    is paid, `probability` (of the whole answer, the product over its tokens) where it isn't known.
    """

    text: str | None
    error: str | None = None
    finished: bool = True
    prompt_tokens: int | None = None
    num_tokens: int | None = None
    latency_s: float | None = None
    cost: float | None = None
    probability: float | None = None


class Subject(Protocol):
    """A base model, an adapter, a registered version, a model's folder or an endpoint.

    `about` says what it is (its id, revision, digest, licence) as names and values for the record.
    """

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> Mapping[str, str]: ...

    def answer(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        """Greedy answers in the order of the questions."""
        ...

    def sample(self, questions: Sequence[Question], max_new_tokens: int, temperature: float, done: Done) -> list[Reply]:
        """Sampled answers, one for each question, in their order; the same each time."""
        ...

    def answer_alone(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        """Greedy answers asked one at a time, each with its latency."""
        ...

    def likelihoods(self, questions: Sequence[Question], options: Sequence[str], done: Done) -> NDArray[np.float64]:
        """Log-likelihood of each option as the whole answer, the end of the turn included: (questions, options).

        Raises UserError where the subject can't tell.
        """
        ...
