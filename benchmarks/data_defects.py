"""A file of 1,000 conversations, 25 of them defective in 25 ways, with the ground truth."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_RECORDS = 1_000
EVERY = 40  # lines between two defects
LONG_LINE = 2_000_000  # bytes, over prepare.max_line_bytes

TOOL = {
    "type": "function",
    "function": {
        "name": "track_card",
        "description": "Where a card is.",
        "parameters": {
            "type": "object",
            "properties": {"card": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["card"],
        },
    },
}


@dataclass(frozen=True)
class Planted:
    """A defect: the line that it is on, and words that its reason has to hold."""

    line: int
    words: str


def sound(number: int) -> dict[str, Any]:
    """A conversation without a defect, every tenth with a call of a tool."""
    asked = {"role": "user", "content": f"Where is the card that I ordered {number} days ago?"}
    answer = {"role": "assistant", "content": f"It was sent on day {number} and takes a week."}
    if number % 10:
        return {"messages": [asked, answer]}
    return {
        "messages": [asked, _call({"card": str(number)}), {"role": "tool", "content": "sent"}, answer],
        "tools": [TOOL],
    }


def _call(arguments: Any, name: str = "track_card") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def _user(content: Any = "Where is my card?") -> dict[str, Any]:
    return {"role": "user", "content": content}


def _said(content: Any = "On its way.") -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _line(*messages: Any, **more: Any) -> bytes:
    return json.dumps({"messages": list(messages), **more}).encode()


def _called(arguments: Any, name: str = "track_card") -> bytes:
    return _line(_user(), _call(arguments, name), {"role": "tool", "content": "sent"}, _said(), tools=[TOOL])


def defects() -> list[tuple[bytes, str]]:
    """25 lines and what the reason of each has to say."""
    return [
        (b'{"messages": [', "not JSON"),
        (b'["a list"]', "expected an object"),
        (b'{"messages": [], "messages": []}', "occurs more than once"),
        (_line(_user("caf\u00e9"), _said()).replace(b"\\u00e9", b"\xe9"), "not UTF-8"),
        (_line(_user(), _said()).replace(b"card", b"ca\0rd"), "NUL"),
        (_line(_user(), _said("a\0b")), "NUL character"),
        (_line(_user(), _said("cut \ud83d off")), "lone surrogate"),
        (_line(_user("x" * LONG_LINE), _said()), "bytes long"),
        (_line(_user("many words " * 2_000), _said()), "tokens after the chat template"),
        (b'{"messages": [{"role": "user", "content": NaN}]}', "NaN"),
        (b'{"dialogue": []}', "no field 'messages'"),
        (b'{"messages": "hello"}', "expected a list of messages"),
        (b'{"messages": []}', "is empty"),
        (_line({"content": "Where?"}, _said()), "has no role"),
        (_line(_user(), {"role": "asistant", "content": "Here."}), "has the role 'asistant'"),
        (_line(_user(), _said("  ")), "is empty"),
        (_line(_user(3), _said()), "is a number, expected text"),
        (_line(_user(), {"role": "assistant"}), "has no content"),
        (_line(_user(), _user(), _said()), "after user"),
        (_line(_user()), "expected an answer of the assistant"),
        (_called({"days": 2}), "don't satisfy its schema"),
        (_called({"card": "7"}, "trak_card"), "not among its tools"),
        (_called("{"), "are not JSON"),
        (_line(_user(), {"role": "tool", "content": "sent"}, _said()), "is the tool's after user"),
        (_line(_user(), _said(), tools=[{"name": "t", "parameters": {"type": "objct"}}]), "no JSON schema"),
    ]


def write(path: Path) -> list[Planted]:
    """Writes the file; returns where the defects are."""
    faulty = {EVERY * number: defect for number, defect in enumerate(defects(), 1)}
    with path.open("wb") as file:
        for line in range(1, NUM_RECORDS + 1):
            content = faulty[line][0] if line in faulty else json.dumps(sound(line)).encode()
            file.write(content + b"\n")
    return [Planted(line, words) for line, (_, words) in faulty.items()]
