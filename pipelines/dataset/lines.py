"""Lines of a UTF-8 file, one at a time and never longer than asked: what is wrong with one goes to the defects."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from pipelines.dataset.defects import Defects, Place

UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Text:
    """A text file being read: how the user knows it, and the longest line that is read, in bytes.

    With `in_one`, the file is one value: a line that isn't UTF-8 spoils all of it.
    """

    file: BinaryIO
    shown: str
    defects: Defects
    max_line_bytes: int
    in_one: bool = False

    def place(self, line: int) -> Place:
        return Place(self.shown, line)

    def whole(self, line: int | None) -> Place:
        """The file as a whole, where a line of it (a header, a broken bracket) spoils all records.

        The line is part of the name, not of the place, so that a quarantine of records can't swallow it.
        """
        return Place(self.shown if line is None else f"{self.shown}:{line}")

    def content(self) -> str:
        """All of it; what is not UTF-8, and NUL, is a defect and replaced, so that reading goes on."""
        unbounded = replace(self, max_line_bytes=1 << 62, in_one=True)
        return "".join(line for _, line, _ in unbounded.lines())

    def lines(self) -> Iterator[tuple[int, str, bool]]:
        """(number, text, whether it is sound); of an unsound line the text is a stand-in.

        Bytes that are not UTF-8, and NUL, are replaced; a line that is too long is nothing but a quote where its
        number of quotes is odd, so that CSV goes on in the state that the line would have left.
        """
        offset, number, limit = 0, 0, self.max_line_bytes
        # Two bytes more than the limit: the line end is no part of the line.
        while line := self.file.readline(limit + 2):
            number += 1
            if number == 1 and line.startswith(UTF8_MARK):
                offset, line = len(UTF8_MARK), line[len(UTF8_MARK) :]
            if len(line) > limit and len(line.rstrip(b"\r\n")) > limit:
                size, stand_in = self._skip(line, number)
                offset += size
                yield number, stand_in, False
                continue
            try:
                text = line.decode("utf-8")
                sound = "\0" not in text
            except UnicodeDecodeError:
                sound = False
            yield (number, text, True) if sound else (number, self._repaired(line, number, offset), False)
            offset += len(line)

    def _skip(self, start: bytes, number: int) -> tuple[int, str]:
        """Reads on to the line's end without keeping it; (bytes skipped, what stands for the line)."""
        size, quotes, tail = len(start), start.count(b'"'), start[-2:]
        while not tail.endswith(b"\n") and (piece := self.file.readline(1 << 16)):
            size, quotes, tail = size + len(piece), quotes + piece.count(b'"'), (tail + piece)[-2:]
        long = size - len(tail) + len(tail.rstrip(b"\r\n"))
        self.defects.add(self.place(number), f"is {long:,} bytes long, the limit is {self.max_line_bytes:,}")
        return size, '"\n' if quotes % 2 else "\n"

    def _repaired(self, line: bytes, number: int, offset: int) -> str:
        """The line's text with what is not UTF-8, and NUL, replaced; each is a defect."""
        place = self.whole(number) if self.in_one else self.place(number)
        raw = line.decode("utf-8", "backslashreplace")
        if (nul := line.find(b"\0")) >= 0:
            self.defects.add(place, f"NUL byte at byte {offset + nul} of the file", raw=lambda: raw)
            line = line.replace(b"\0", b"?")
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            reason = f"not UTF-8: byte 0x{line[error.start]:02x} at byte {offset + error.start} of the file"
            self.defects.add(place, reason, raw=lambda: raw)
        return line.decode("utf-8", "replace")
