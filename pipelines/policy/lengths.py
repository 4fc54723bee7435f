"""Whether prompts leave room for an answer in the model's context."""

from collections.abc import Sequence
from typing import Any

from pipelines.config.schema import Model
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.policy.base import template_switches
from pipelines.policy.template import render


def prompt_lengths(model: Model, tokenizer: Any, rows: Sequence[Row], limit: int, field: str) -> dict[str, int]:
    """Tokens of each row's prompt, by the row's id.

    Raises UserError where the longest leaves no room for an answer of `limit` tokens, which `field` sets.
    """
    prompts = render(
        tokenizer, [row.prompt for row in rows], [row.tools for row in rows], template_switches(model), prompt=True
    )
    lengths = [len(prompt) for prompt in prompts]
    tokens = max(lengths)
    longest = lengths.index(tokens)
    if tokens + limit > model.context_length:
        raise UserError(
            f"{rows[longest].source}: row {rows[longest].id} has a prompt of {tokens} tokens; with "
            f"{field}={limit} that is over the {model.context_length} tokens of "
            f"{model.name}'s context; lower it, or drop long rows with prepare.max_length"
        )
    return {row.id: length for row, length in zip(rows, lengths, strict=True)}
