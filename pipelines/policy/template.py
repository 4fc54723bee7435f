"""The one way a conversation becomes tokens; torch isn't needed for it.

Training, evaluation and the registered model all go through here, so what was scored is what is served. The
package travels with every registered version, this file with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from pipelines.product import digest_of

ROWS_AT_ONCE = 512  # the tokenizer keeps kilobytes beside each row of a batch

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
Ranges = list[tuple[int, int]]


def render(
    tokenizer: Any, conversations: Sequence[Messages], tools: Sequence[Tools], template: Mapping[str, Any], prompt: bool
) -> list[list[int]]:
    """Token ids of whole conversations through the model's own chat template.

    `template` holds the template's switches (such as `enable_thinking`); with `prompt` the text ends where the
    assistant's answer begins.
    """
    found = texts(tokenizer, conversations, tools, template, prompt)
    ids: list[list[int]] = []
    for start in range(0, len(found), ROWS_AT_ONCE):
        # The template writes every special token itself.
        batch = tokenizer(found[start : start + ROWS_AT_ONCE], add_special_tokens=False, return_attention_mask=False)
        ids += batch["input_ids"]
    return ids


def texts(
    tokenizer: Any, conversations: Sequence[Messages], tools: Sequence[Tools], template: Mapping[str, Any], prompt: bool
) -> list[str]:
    """Whole conversations as the chat template writes them; the arguments are those of `render`."""
    found: list[str] = []
    for offered, group in _by_tools(conversations, tools):
        found += tokenizer.apply_chat_template(
            group, tools=offered, tokenize=False, add_generation_prompt=prompt, **template
        )
    return found


def marked_texts(
    tokenizer: Any, conversations: Sequence[Messages], tools: Sequence[Tools], template: Mapping[str, Any]
) -> list[tuple[str, Ranges]]:
    """Each conversation's text and the ranges of characters that `{% generation %}` marks in it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    switches = {**tokenizer.special_tokens_map, **template}
    found: list[tuple[str, Ranges]] = []
    for offered, group in _by_tools(conversations, tools):
        written, ranges = render_jinja_template(
            [[_without_nulls(message) for message in messages] for messages in group],
            tools=offered,
            chat_template=tokenizer.get_chat_template(None, offered),
            return_assistant_tokens_mask=True,
            **switches,
        )
        found += zip(written, ranges, strict=True)
    return found


def _without_nulls(message: Mapping[str, Any]) -> Mapping[str, Any]:
    # As apply_chat_template does: many templates take a key for a value.
    if None not in message.values():
        return message
    return {key: value for key, value in message.items() if value is not None}


def _by_tools(conversations: Sequence[Messages], tools: Sequence[Tools]) -> Iterator[tuple[Tools, list[Messages]]]:
    """Neighbours that are offered the same tools, as lists."""
    pairs = zip(conversations, tools, strict=True)
    for offered, group in groupby(pairs, key=lambda pair: pair[1]):
        yield offered, [list(messages) for messages, _ in group]


def ends_of(settings: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a turn: those of the generation settings, and the tokenizer's own."""
    listed = settings.eos_token_id
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return sorted({*listed, tokenizer.eos_token_id} - {None})


def digest_of_template(tokenizer: Any, switches: Mapping[str, Any]) -> str:
    """sha256 of the chat template's text and of what it is told."""
    return digest_of([tokenizer.chat_template, dict(switches)])
