"""A teacher in an environment: its episodes, with what their turns took."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.config.schema import Task
from pipelines.dataset.row import Message, Row
from pipelines.environments.episode import Episode, play
from pipelines.environments.tools import Toolbox, environment_class, offered
from pipelines.generation.attempt import Attempt
from pipelines.subjects.endpoint import Recalled
from pipelines.subjects.posting import OVER_LIMIT
from pipelines.subjects.subject import Question, Reply

Turn = Callable[[list[Question], int], list[Reply]]  # asks, for the turn of that number


@dataclass(frozen=True)
class Stage:
    """An environment to play in, and for how many turns of the assistant's."""

    environment: type[Toolbox]
    max_turns: int

    @classmethod
    def of(cls, task: Task) -> "Stage | None":
        """None in a task without an environment. Raises UserError for an environment that isn't there."""
        if task.environment is None or task.max_turns is None:
            return None
        return cls(environment_class(task.environment), task.max_turns)

    @property
    def tools(self) -> list[dict[str, Any]]:
        return offered(self.environment)

    def play(self, rows: Sequence[Row], turn: Turn) -> list[Episode]:
        """An episode for each row, turn by turn, all that go on asked at once."""
        count = 0

        def ask(conversations: list[list[Message]], tools: Sequence[Mapping[str, Any]]) -> list[Reply]:
            nonlocal count
            count += 1
            return turn([Question(messages, tools) for messages in conversations], count - 1)

        return play(rows, ask, self.environment, self.max_turns)


@dataclass
class Taken:
    """What the replies of one try took."""

    replies: list[Reply] = field(default_factory=list)

    def total(self, name: str) -> Any:
        """The sum over the turns; None where it isn't known of one, or there was none."""
        values = [getattr(reply, name) for reply in self.replies]
        return None if None in values or not values else sum(values)

    def attempt(self, row: Row, number: int, seed: int, **told: Any) -> Attempt:
        """The try, with its sums."""
        last = self.replies[-1]
        known = {name: self.total(name) for name in ("prompt_tokens", "num_tokens", "cost")}
        return Attempt(
            row=row.id,
            number=number,
            seed=seed,
            unasked=(last.error or "").startswith(OVER_LIMIT),
            cached=all(isinstance(reply, Recalled) for reply in self.replies),
            **(known | {"text": last.text, "error": last.error, "finished": last.finished} | told),
        )


def told_of(episode: Episode) -> dict[str, Any]:
    """What a try says of its episode."""
    return {
        "text": episode.text,
        "error": episode.error,
        "finished": episode.finished,
        "played": True,
        "num_turns": episode.num_turns,
        "num_calls": episode.num_calls,
        "num_failed": episode.num_failed,
    }
