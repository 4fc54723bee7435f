"""Episodes of several turns: a batch of rows is asked, its calls are made, and it is asked again.

As trl.GRPOTrainer's loop of tools does, so that training and evaluation agree: a turn with a malformed call is a text
without calls and ends the episode; a call of an unknown tool, or one that raises, is answered with the error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.dataset.row import Message, Row
from pipelines.environments.calls import calls_in, transcript, turn
from pipelines.environments.tools import Toolbox, answered, offered


class Said(Protocol):
    """One turn of the assistant's, as `pipelines.subjects.subject.Reply` holds it; `text` is None for an error."""

    @property
    def text(self) -> str | None: ...

    @property
    def error(self) -> str | None: ...

    @property
    def finished(self) -> bool: ...

    @property
    def num_tokens(self) -> int | None: ...


Ask = Callable[[list[list[Message]], Sequence[Mapping[str, Any]]], Sequence[str | Said]]


@dataclass
class Episode:
    """What followed a row's prompt.

    `num_failed` counts calls that were answered with an error. `finished` is false where the last turn ran into its
    limit or still asked for calls. `num_tokens` are those of the assistant's turns, None where it isn't known of one.
    `error` ends an episode of which nothing is known.
    """

    messages: list[Message] = field(default_factory=list)
    num_turns: int = 0
    num_calls: int = 0
    num_failed: int = 0
    finished: bool = False
    num_tokens: int | None = 0
    error: str | None = None

    @property
    def text(self) -> str | None:
        """What verify reads; None where there is an error."""
        return None if self.error is not None else transcript(self.messages)


def play(rows: Sequence[Row], ask: Ask, environment: type[Toolbox], max_turns: int) -> list[Episode]:
    """An episode for each row, in their order; every turn asks all that go on at once.

    `ask` is given their messages and the tools, and says a turn of each: its text, or a reply. `max_turns` are the
    assistant's; the calls of the last one are not made (GRPO's `max_tool_calling_iterations` is one less).
    """
    boxes = [environment() for _ in rows]
    for box, row in zip(boxes, rows, strict=True):
        box.reset(**row.as_dict())
    episodes = [Episode() for _ in rows]
    going = list(range(len(rows)))
    for number in range(1, max_turns + 1):
        if not going:
            break
        said = ask([[*rows[i].prompt, *episodes[i].messages] for i in going], offered(environment))
        for i, one in zip(going, said, strict=True):
            _add(episodes[i], one, environment)
        going = [i for i in going if episodes[i].error is None and episodes[i].messages[-1].get("tool_calls")]
        if number < max_turns:
            for i in going:
                _call(episodes[i], boxes[i])
    return episodes


def _add(episode: Episode, said: str | Said, environment: type[Toolbox]) -> None:
    text = said if isinstance(said, str) else said.text
    tokens = None if isinstance(said, str) else said.num_tokens
    known = episode.num_tokens is not None and tokens is not None
    episode.num_tokens = (episode.num_tokens or 0) + (tokens or 0) if known else None
    episode.num_turns += 1
    if text is None:
        episode.error = "no answer" if isinstance(said, str) else said.error or "no answer"
        return
    message = turn(text, offered(environment))
    episode.messages.append(message)
    episode.finished = (isinstance(said, str) or said.finished) and not message.get("tool_calls")


def _call(episode: Episode, box: Toolbox) -> None:
    """Makes the calls of the last turn and appends what their tools answer."""
    for call in list(calls_in(episode.messages[-1])):
        answer, failed = answered(box, call)
        episode.num_calls += 1
        episode.num_failed += failed
        episode.messages.append({"role": "tool", "name": call.name, "content": answer})
