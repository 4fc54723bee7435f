"""The passages that a row's answer has to rest on: how a record gives them, and how a prompt shows them."""

from collections.abc import Sequence
from typing import Any

from pipelines.dataset.messages import text_problem
from pipelines.dataset.row import Message, text_of
from pipelines.dataset.strict_json import kind

_TEXTS = ("text", "content")  # the field of an object that holds its passage


def passages(name: str, value: Any) -> list[str] | None:
    """The passages of a column: a text is one, a list has one an entry; None where there is none.

    An entry is a text, or an object with `text` or `content`. Raises ValueError with the reason where one is neither.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return None
    entries = value if isinstance(value, list) else [value]
    found = []
    for number, entry in enumerate(entries, 1):
        at = f"passage {number} of {name!r}" if isinstance(value, list) else repr(name)
        text = next((entry[key] for key in _TEXTS if key in entry), None) if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            held = "an object without text or content" if isinstance(entry, dict) and text is None else kind(text)
            raise ValueError(f"{at} is {held}, expected text, or a list of texts or of objects with text or content")
        if reason := text_problem(at, text):
            raise ValueError(reason)
        found.append(text.strip())
    return found


def block(context: Sequence[str]) -> str:
    """What a prompt shows of passages that it doesn't hold by itself: numbered from 1, and an empty line behind."""
    return "\n".join(["Context:", *(f"[{number}] {text}" for number, text in enumerate(context, 1))]) + "\n\n"


def with_context(prompt: Sequence[Message], context: Sequence[str] | None) -> list[Message]:
    """The prompt with the passages in it.

    It stays as it is where every passage stands in one of its messages already, white space aside; otherwise all of
    them go as a block before the text of the last user's turn.
    """
    texts = [_spaced(text_of(message)) for message in prompt]
    if not context or all(any(_spaced(passage) in text for text in texts) for passage in context):
        return list(prompt)
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    shown = {**prompt[last], "content": block(context) + text_of(prompt[last])}
    return [*prompt[:last], shown, *prompt[last + 1 :]]


def parted(text: str, context: Sequence[str] | None) -> tuple[str, str]:
    """The block that a message begins with, "" where there is none, and what follows it."""
    shown = block(context) if context else ""
    return (shown, text[len(shown) :]) if shown and text.startswith(shown) else ("", text)


def _spaced(text: str) -> str:
    return " ".join(text.split())
