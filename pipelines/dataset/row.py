"""The one record that every trainer and every evaluation reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

Message = dict[str, Any]
FURTHER = ("rejected", "accepted", "context", "kept")  # fields that most rows lack, and then don't write


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt with its reference completion; code that knows a data set ends here.

    `prompt` and `completion` are chat messages (a row that is only there to be answered has no completion),
    `answer` is what `verify` compares with, `label` the class for stratified splits and slices ("" for none),
    `source` reads `file:line`, `group` names what must not be parted by a split, `rejected` is the answer that
    a preference pair's completion is better than. `accepted` are further right answers, `context` the passages that
    an answer has to rest on (the prompt holds them), `kept` columns of the source, by whose values scores are told
    apart.
    """

    id: str
    task: str
    prompt: list[Message]
    completion: list[Message]
    answer: str
    label: str
    source: str
    group: str
    tools: list[dict[str, Any]] | None = None
    rejected: list[Message] | None = None
    accepted: list[str] | None = None
    context: list[str] | None = None
    kept: dict[str, str] | None = None

    @property
    def answers(self) -> list[str]:
        """Every right answer, `answer` first."""
        return [self.answer, *(self.accepted or [])]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, those behind `tools` only where there are any; the messages are shared, not copied."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None or name not in FURTHER}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(**record)


def question(prompt: Sequence[Message]) -> str:
    """What a prompt asks: the text of its user's turns."""
    return "\n".join(text_of(message) for message in prompt if message["role"] == "user")


def text_of(message: Message) -> str:
    """The message's text; a call of a tool may come without one."""
    return str(message.get("content") or "")
