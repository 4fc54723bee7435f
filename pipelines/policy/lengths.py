"""Whether prompts leave room for an answer in a model's context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.policy.template import render


@dataclass(frozen=True)
class Room:
    """The tokens of a context, whose it is, and the `limit` of an answer's, which `field` sets."""

    context: int
    whose: str
    limit: int
    field: str


def prompt_lengths(tokenizer: Any, template: Mapping[str, Any], rows: Sequence[Row], room: Room) -> dict[str, int]:
    """Tokens of each row's prompt, by the row's id. Raises UserError where the longest leaves no room for an answer."""
    prompts = render(tokenizer, [row.prompt for row in rows], [row.tools for row in rows], template, prompt=True)
    lengths = [len(prompt) for prompt in prompts]
    tokens = max(lengths)
    longest = lengths.index(tokens)
    if tokens + room.limit > room.context:
        raise UserError(
            f"{rows[longest].source}: row {rows[longest].id} has a prompt of {tokens} tokens; with "
            f"{room.field}={room.limit} that is over the {room.context} tokens of {room.whose}'s context; lower it, or "
            "drop long rows with prepare.max_length"
        )
    return {row.id: length for row, length in zip(rows, lengths, strict=True)}
