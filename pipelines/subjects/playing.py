"""A subject in an environment: asked turn by turn, its calls of tools made, its answer the whole transcript."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.schema import Task
from pipelines.dataset.row import Message
from pipelines.environments.episode import Ask, Episode, play
from pipelines.environments.tools import Toolbox, environment_class
from pipelines.subjects.subject import Done, Question, Reply, Subject


@dataclass(frozen=True)
class PlayingSubject:
    """Answers questions about rows with episodes of at most `max_turns` turns; others are asked plainly."""

    inner: Subject
    environment: type[Toolbox]
    max_turns: int

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def about(self) -> Mapping[str, str]:
        return self.inner.about

    def answer(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        return self._played(questions, lambda asked: self.inner.answer(asked, max_new_tokens, _quiet), done)

    def sample(self, questions: Sequence[Question], max_new_tokens: int, temperature: float, done: Done) -> list[Reply]:
        return self._played(
            questions, lambda asked: self.inner.sample(asked, max_new_tokens, temperature, _quiet), done
        )

    def answer_alone(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        replies = []
        for question in questions:
            latencies: list[float] = []

            def turn(asked: list[Question], latencies: list[float] = latencies) -> list[Reply]:
                found = self.inner.answer_alone(asked, max_new_tokens, _quiet)
                latencies += [reply.latency_s or 0.0 for reply in found]
                return found

            (reply,) = self._played([question], turn, done)
            replies.append(replace(reply, latency_s=sum(latencies)))
        return replies

    def likelihoods(self, questions: Sequence[Question], options: Sequence[str], done: Done) -> NDArray[np.float64]:
        return self.inner.likelihoods(questions, options, done)

    def _played(self, questions: Sequence[Question], ask: Any, done: Done) -> list[Reply]:
        rows = [
            replace(question.row, prompt=list(question.messages)) for question in questions if question.row is not None
        ]
        plain = [question for question in questions if question.row is None]
        episodes = iter(play(rows, _turns(ask), self.environment, self.max_turns))
        others = iter(ask(plain) if plain else [])
        done(len(questions))
        return [next(others) if question.row is None else _reply(next(episodes)) for question in questions]


def _turns(ask: Any) -> Ask:
    """A turn of every episode that goes on, each asked with its messages so far."""

    def turns(conversations: list[list[Message]], tools: Sequence[Mapping[str, Any]]) -> list[Reply]:
        found: list[Reply] = ask([Question(messages, tools) for messages in conversations])
        return found

    return turns


def _reply(episode: Episode) -> Reply:
    return Reply(episode.text, episode.error, episode.finished, num_tokens=episode.num_tokens)


def _quiet(count: int) -> None:
    """Turns are no rows: they don't count as progress."""


def in_environment(subject: Subject, task: Task) -> Subject:
    """The subject as the task asks it: in its environment, where it has one."""
    if task.environment is None or task.max_turns is None:
        return subject
    return PlayingSubject(subject, environment_class(task.environment), task.max_turns)
