"""JSON without what Python's reader lets pass: repeated keys, NaN, numbers beyond a float; and with line numbers."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
    list: "a list",
    dict: "an object",
}


class ShapeError(ValueError):
    """JSON of another shape than the format's, and the line where that shows."""

    def __init__(self, reason: str, lineno: int) -> None:
        super().__init__(reason)
        self.lineno = lineno


class Decoder:
    """Decodes a text and afterwards tells, in `problem`, what was wrong with it although it could be read."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._unique, parse_constant=self._constant, parse_float=self._float
        )

    def decode(self, text: str) -> Any:
        self.problem = None
        return self._decoder.decode(text)

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that starts there and where it ends."""
        self.problem = None
        return self._decoder.raw_decode(text, start)

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = min(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            self.problem = f"key {twice!r} occurs more than once in an object"
        return found

    def _constant(self, name: str) -> None:
        self.problem = f"{name} is no number in JSON"

    def _float(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            self.problem = f"{text} is beyond what a float can hold"
        return value


class Walk:
    """Reads a JSON text value by value and knows the line it stands on."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoder = Decoder()
        self._at = 0
        self._counted = 0
        self._line = 1

    @property
    def problem(self) -> str | None:
        """What is wrong with the value that was read last, though it could be read."""
        return self._decoder.problem

    def peek(self) -> str:
        """The next character after white space, empty at the end."""
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at
        return self._text[self._at : self._at + 1]

    def line(self) -> int:
        """The line of the next value, from 1."""
        self.peek()
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def expect(self, characters: str) -> str:
        """The next character, which has to be one of these."""
        found = self.peek()
        if not found or found not in characters:
            raise json.JSONDecodeError(f"Expecting {' or '.join(characters)}", self._text, self._at)
        return found

    def take(self, characters: str) -> str:
        """Steps over the next character, which has to be one of these."""
        found = self.expect(characters)
        self._at += 1
        return found

    def value(self) -> Any:
        return self.sized_value()[0]

    def sized_value(self) -> tuple[Any, str]:
        """The next value and the text it was read from."""
        self.peek()
        start = self._at
        found, self._at = self._decoder.decode_at(self._text, start)
        return found, self._text[start : self._at]

    def items(self, opening: str, closing: str) -> Iterator[None]:
        """Stops before each item between the brackets; the caller consumes the item."""
        self.take(opening)
        if self.peek() == closing:
            self.take(closing)
            return
        while True:
            yield
            if self.take("," + closing) == closing:
                return

    def members(self, name: str = "key") -> Iterator[tuple[int, str]]:
        """(line, key) of each member of an object; the caller consumes the value."""
        seen: set[str] = set()
        for _ in self.items("{", "}"):
            self.expect('"')
            line, key = self.line(), self.value()
            if key in seen:
                raise ShapeError(f"{name} {key!r} occurs a second time", line)
            seen.add(key)
            self.take(":")
            yield line, key

    def end(self) -> None:
        if self.peek():
            raise json.JSONDecodeError("Extra data", self._text, self._at)


def kind(value: Any) -> str:
    """What a decoded value is, as JSON calls it."""
    return _KINDS.get(type(value), "text")


def json_reason(error: ValueError | RecursionError) -> str:
    """What a user is told of text that can't be decoded."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return "not JSON: nested too deeply" if isinstance(error, RecursionError) else str(error)
