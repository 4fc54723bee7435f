"""CSV with a header, as RFC 4180 says, and TSV: the same with tabs."""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Self

from pipelines.dataset.lines import Text
from pipelines.dataset.record import Record, column_reasons

DELIMITERS = {"csv": ",", "tsv": "\t"}
_REASONS = {
    "unexpected end of data": "a quote that opens here is never closed",
    "expected after '\"'": "text after a closing quote; a quote inside a field is doubled",
    "new-line character seen": "a carriage return inside a line; lines end in LF or CRLF",
}


def delimited_records(text: Text, format: str, wanted: Sequence[str]) -> Iterator[Record]:
    """The records of a file whose header names each wanted column once; a place is where a record starts."""
    rows = _rows(text, DELIMITERS[format])
    line, header = next(rows, (1, []))
    usable = header is not None and _check_header(text, line, header, wanted)
    for line, values in rows:
        if values is None:
            continue
        if header is not None and len(values) != len(header):
            held = f"{len(values)} field" + ("s" if len(values) > 1 else "")
            reason = f"{held}, the header has {len(header)}"
            text.defects.add(text.place(line), reason, raw=partial(list, values))
        elif usable and header is not None:
            yield Record(text.place(line), dict(zip(header, values, strict=True)))


def _check_header(text: Text, line: int, header: list[str], wanted: Sequence[str]) -> bool:
    reasons = column_reasons(header, wanted, "the header")
    for reason in reasons:
        text.defects.add(text.whole(line), reason)
    return not reasons


def _rows(text: Text, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """(first line, values) of each record that isn't blank; None for one whose lines or length have a defect."""
    feed = _Feed(text)
    # The feed bounds what a record may hold; the reader's own limit would be another one.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            text.defects.add(text.place(feed.first), _reason(error), raw=partial("".join, feed.lines))
            yield feed.first, None
            continue
        if feed.size > text.max_line_bytes and feed.sound:
            reason = f"the record is {feed.size:,} bytes long, the limit is {text.max_line_bytes:,}"
            text.defects.add(text.place(feed.first), reason)
        if not feed.sound or feed.size > text.max_line_bytes:
            yield feed.first, None
        elif values:
            yield feed.first, values


class _Feed:
    """The lines of one record after the other, for csv.reader.

    A record that grows over the limit, such as one whose quote is never closed, is fed on with nothing but the
    quotes that decide where it ends.
    """

    def __init__(self, text: Text) -> None:
        self._lines, self._limit, self._next = text.lines(), text.max_line_bytes, 1
        self.begin()

    def begin(self) -> None:
        """A new record starts."""
        self.first, self.size, self.sound = self._next, 0, True
        self.lines: list[str] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        number, line, sound = next(self._lines)
        self._next = number + 1
        self.sound &= sound
        self.size += len(line.rstrip("\r\n").encode())
        if self.size > self._limit:
            return '"' if line.count('"') % 2 else ""
        self.lines.append(line)
        return line


def _reason(error: csv.Error) -> str:
    return next((reason for part, reason in _REASONS.items() if part in str(error)), f"not CSV: {error}")
