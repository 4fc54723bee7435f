"""The nested JSON of CLINC150, `{part: [[query, intent], ...]}`, with the line of every pair.

Format: Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope
Prediction", file data_full.json. `json.load` would lose the line numbers, which every defect and
every row names.
"""

import json
import re
from collections.abc import Container, Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")


class RepeatedPartError(ValueError):
    """A part that the file holds twice: which one is meant, nobody knows."""

    def __init__(self, part: str, lineno: int) -> None:
        super().__init__(f"part {part!r} occurs a second time")
        self.lineno = lineno


class _Walk:
    """Reads a JSON text value by value and knows the line it stands on."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoder = json.JSONDecoder()
        self._at = 0
        self._counted = 0
        self._line = 1

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
        self.peek()
        found, self._at = self._decoder.raw_decode(self._text, self._at)
        return found

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

    def end(self) -> None:
        if self.peek():
            raise json.JSONDecodeError("Extra data", self._text, self._at)


def walk(text: str, wanted: Container[str]) -> Iterator[tuple[str, int, Any]]:
    """(part, line, pair) in the file's order; of a part that isn't wanted one, with its whole list.

    Raises json.JSONDecodeError where the text is no JSON or not nested as described, and
    RepeatedPartError.
    """
    at = _Walk(text)
    seen: set[str] = set()
    for _ in at.items("{", "}"):
        at.expect('"')
        line, part = at.line(), at.value()
        if part in seen:
            raise RepeatedPartError(part, line)
        seen.add(part)
        at.take(":")
        if part not in wanted:
            yield part, line, at.value()
            continue
        for _ in at.items("[", "]"):
            yield part, at.line(), at.value()
    at.end()
