"""A model on this machine as a subject."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.policy.chat import Decoding, Generated, generate
from pipelines.policy.likelihood import option_likelihoods
from pipelines.policy.template import render
from pipelines.subjects.subject import Done, Question, Reply

Active = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class LocalSubject:
    """A loaded model, its tokenizer and the template's switches; `active` makes it itself where weights are shared."""

    name: str
    about: Mapping[str, str]
    model: Any
    tokenizer: Any
    template: Mapping[str, Any]
    batch_size: int
    seed: int
    active: Active = field(default=contextlib.nullcontext)

    def answer(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        return self._ask(questions, Decoding(max_new_tokens), done)

    def sample(self, questions: Sequence[Question], max_new_tokens: int, temperature: float, done: Done) -> list[Reply]:
        return self._ask(questions, Decoding(max_new_tokens, temperature, self.seed), done)

    def answer_alone(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        replies = []
        with self.active():
            for question in questions:
                begun = time.perf_counter()
                prompt = self._render([question])
                found = generate(self.model, self.tokenizer, prompt, Decoding(max_new_tokens), 1)[0]
                replies.append(_reply(found, len(prompt[0]), time.perf_counter() - begun))
                done(1)
        return replies

    def likelihoods(self, questions: Sequence[Question], options: Sequence[str], done: Done) -> NDArray[np.float64]:
        with self.active():
            return option_likelihoods(
                self.model, self.tokenizer, self._render(questions), options, self.batch_size, done
            )

    def _ask(self, questions: Sequence[Question], decoding: Decoding, done: Done) -> list[Reply]:
        prompts = self._render(questions)
        with self.active():
            found = generate(self.model, self.tokenizer, prompts, decoding, self.batch_size, done)
        return [_reply(one, len(prompt), None) for one, prompt in zip(found, prompts, strict=True)]

    def _render(self, questions: Sequence[Question]) -> list[list[int]]:
        messages, tools = [q.messages for q in questions], [q.tools for q in questions]
        return render(self.tokenizer, messages, tools, self.template, prompt=True)


def _reply(found: Generated, prompt_tokens: int, latency_s: float | None) -> Reply:
    return Reply(
        text=found.text,
        finished=found.finished,
        prompt_tokens=prompt_tokens,
        num_tokens=found.num_tokens,
        latency_s=latency_s,
        probability=float(np.exp(found.logprob)),
    )
