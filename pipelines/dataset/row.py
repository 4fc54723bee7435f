"""The one record that every trainer and every evaluation reads."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt with its reference completion; code that knows a data set ends here.

    `prompt` and `completion` are chat messages, `answer` is what `verify` compares with, `label`
    the class for stratified splits and slices, `source` reads `file:line`, `group` names what
    must not be parted by a split.
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

    def as_dict(self) -> dict[str, Any]:
        """The fields by name; the messages are shared, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(**record)
