"""A teacher's try at a row: what it said, what that took, and what a row would hold of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from pipelines.dataset.row import Message, Row
from pipelines.environments.calls import calls_in, turn


@dataclass(frozen=True, slots=True)
class Attempt:
    """The try numbered `number`, from 0, at the row of that id.

    `text` is what verify reads: the answer, or, of an episode in an environment (`played`), its transcript; None where
    there is an `error`. `unasked` is a try that the spending limit didn't allow. `finished` is false where the last
    turn ran into the limit of new tokens or still asked for calls. Counts of tokens and the cost (US dollars) are sums
    over the turns, None where one isn't known; `cached` says that all of it lay in the cache.
    """

    row: str
    number: int
    text: str | None
    seed: int
    error: str | None = None
    unasked: bool = False
    finished: bool = True
    played: bool = False
    num_turns: int = 1
    num_calls: int = 0
    num_failed: int = 0
    prompt_tokens: int | None = None
    num_tokens: int | None = None
    cost: float | None = None
    cached: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> Self:
        return cls(**held)

    def completion(self, row: Row) -> list[Message]:
        """The messages that follow the row's prompt."""
        if self.text is None:
            return []
        if self.played:
            found: list[Message] = json.loads(self.text)
            return found
        return [turn(self.text, row.tools) if row.tools else {"role": "assistant", "content": self.text}]


def seed_of(*parts: object) -> int:
    """A seed of 32 bits that hangs on nothing but the parts."""
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8], 16)


def spoken(messages: list[Message]) -> str:
    """What an assistant says and calls, as text for people, for a judge, and to compare answers by."""
    lines: list[str] = []
    several = len(messages) > 1
    for message in messages:
        text = str(message.get("content") or "")
        if message["role"] == "tool":
            lines.append(f"[{message.get('name', 'tool')} answers] {text}")
            continue
        if text or not message.get("tool_calls"):
            lines.append(f"[says] {text}" if several else text)
        for call in calls_in(message):
            lines.append(f"[calls] {call.name} {json.dumps(call.arguments, ensure_ascii=False, sort_keys=True)}")
    return "\n".join(lines)
