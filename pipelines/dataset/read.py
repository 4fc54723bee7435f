"""A task's source files as records that know their line; every defect found is gathered."""

import csv
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.config.nearest import did_you_mean
from pipelines.config.paths import resolve
from pipelines.config.schema import Source
from pipelines.dataset.clinc150 import walk
from pipelines.dataset.defects import Defects

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
    list: "a list",
    dict: "an object",
}

Fields = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source: `label` is what the file says, `answer` what its row will say."""

    line: int
    prompt: str
    answer: str
    label: str


def read_source(source: Source, defects: Defects) -> Iterator[Record]:
    """The records that are whole, in the file's order; what is wrong goes to `defects`.

    The prompt stays as it is; answer and label lose surrounding white space.
    """
    path = resolve(source.path)
    if (reason := _unreadable(path)) is not None:
        defects.add(source.path, None, reason)
        return
    reader = _Reader(source, defects)
    found = False
    with path.open("rb") as file:
        for line, fields in reader.fields(file):
            found = True
            if (record := reader.record(line, fields)) is not None:
                yield record
    if not found and not reader.faulty:
        defects.add(source.path, None, "holds no record")


def _unreadable(path: Path) -> str | None:
    """Why the file can't be read at all, or None."""
    try:
        if path.is_dir():
            return "is a folder, expected a file"
        if not stat.S_ISREG(path.stat().st_mode):
            return "is no regular file"
        with path.open("rb") as file:
            start = file.read(2)
    except FileNotFoundError:
        return f"no such file (looked for {path})"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    if start in UTF16_MARKS:
        return "is UTF-16, expected UTF-8"
    return None if start else "is empty"


class _Reader:
    """One source being read; `faulty` once a defect was found in it."""

    def __init__(self, source: Source, defects: Defects) -> None:
        self.source = source
        self.faulty = False
        self._defects = defects
        self._label = "intent" if source.format == "clinc150" else source.answer
        self._names = list(dict.fromkeys(n for n in (source.prompt, source.answer, self._label) if n))

    def fields(self, file: BinaryIO) -> Iterator[Fields]:
        """(line, fields) of every record that has the shape of its format."""
        return {"csv": self._csv, "jsonl": self._jsonl, "clinc150": self._clinc150}[self.source.format](file)

    def record(self, line: int, fields: Mapping[str, Any]) -> Record | None:
        """The record, or None and its defects."""
        reasons = [reason for name in self._names if (reason := self._not_text(fields, name)) is not None]
        for reason in reasons:
            self._add(line, reason)
        if reasons:
            return None
        constant = self.source.constant_answer or ""
        answer = fields[self.source.answer].strip() if self.source.answer else constant
        label = fields[self._label].strip() if self._label else constant
        return Record(line, fields[self.source.prompt], answer, label)

    def _add(self, line: int | None, reason: str) -> None:
        self.faulty = True
        self._defects.add(self.source.path, line, reason)

    def _lines(self, file: BinaryIO) -> Iterator[str]:
        """Lines as text; what is not UTF-8 or NUL is reported and replaced, so that reading goes on."""
        offset = 0
        for number, line in enumerate(file, start=1):
            body = line.removeprefix(UTF8_MARK) if number == 1 else line
            offset += len(line) - len(body)
            if (nul := body.find(b"\0")) >= 0:
                self._add(number, f"NUL byte at byte {offset + nul} of the file")
                body = body.replace(b"\0", b"?")
            try:
                yield body.decode("utf-8")
            except UnicodeDecodeError as error:
                at, value = offset + error.start, body[error.start]
                self._add(number, f"not UTF-8: byte 0x{value:02x} at byte {at} of the file")
                yield body.decode("utf-8", "replace")
            offset += len(body)

    def _csv(self, file: BinaryIO) -> Iterator[Fields]:
        """Comma-separated with a header, as RFC 4180 says; a line is where its record starts."""
        records = self._csv_records(file)
        line, header = next(records, (1, []))
        usable = self._check_header(line, header)
        for line, values in records:
            if len(values) != len(header):
                fields = f"{len(values)} field" + ("s" if len(values) > 1 else "")
                self._add(line, f"{fields}, the header has {len(header)}")
            elif usable:
                yield line, dict(zip(header, values, strict=True))

    def _csv_records(self, file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(self._lines(file), strict=True)
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                self._add(line, _csv_reason(error))
            else:
                if values:
                    yield line, values

    def _check_header(self, line: int, header: list[str]) -> bool:
        """Whether the header names each wanted column, once."""
        columns = f"the header has {', '.join(map(repr, header)) or 'nothing'}"
        missing = [name for name in self._names if name not in header]
        for name in missing:
            self._add(line, f"no column {name!r}; {columns}{self._meant(name, header)}")
        twice = sorted({name for name in self._names if header.count(name) > 1})
        for name in twice:
            self._add(line, f"column {name!r} occurs {header.count(name)} times")
        return not missing and not twice

    def _meant(self, name: str, held: Iterable[str]) -> str:
        return did_you_mean(name, set(held).difference(self._names))

    def _not_text(self, fields: Mapping[str, Any], name: str) -> str | None:
        """Why the field is no usable text, or None."""
        if name not in fields:
            return f"no field {name!r}{self._meant(name, fields)}"
        value = fields[name]
        if not isinstance(value, str):
            return f"{name!r} is {_kind(value)}, expected text"
        if not value.strip():
            return f"{name!r} is empty"
        if lone := _SURROGATE.search(value):
            return f"{name!r} holds a lone surrogate U+{ord(lone.group()):04X}"
        return f"{name!r} holds a NUL character" if "\0" in value else None

    def _jsonl(self, file: BinaryIO) -> Iterator[Fields]:
        for line, text in enumerate(self._lines(file), start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text.rstrip("\r\n"), object_pairs_hook=_unique)
            except (ValueError, RecursionError) as error:
                self._add(line, _json_reason(error))
                continue
            if isinstance(record, dict):
                yield line, record
            else:
                self._add(line, f"is {_kind(record)}, expected an object")

    def _clinc150(self, file: BinaryIO) -> Iterator[Fields]:
        """Records with the fields `query` and `intent` of the selected parts."""
        wanted = self.source.parts or []
        held = set()
        try:
            for part, line, pair in walk("".join(self._lines(file)), wanted):
                held.add(part)
                if part not in wanted:
                    continue
                if isinstance(pair, list) and len(pair) == 2:
                    yield line, {"query": pair[0], "intent": pair[1]}
                else:
                    self._add(line, "expected a pair [query, intent]")
        except (ValueError, RecursionError) as error:
            self._add(getattr(error, "lineno", None), _json_reason(error))
        else:
            for part in sorted(set(wanted) - held):
                self._add(None, f"no pairs in part {part!r}{did_you_mean(part, held)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"key {twice[0]!r} occurs more than once in an object")
    return record


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "text")


def _csv_reason(error: csv.Error) -> str:
    known = {
        "unexpected end of data": "a quote that opens here is never closed",
        "',' expected after '\"'": "text after a closing quote; a quote inside a field is doubled",
    }
    return known.get(str(error), f"not CSV: {error}")


def _json_reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return "not JSON: nested too deeply" if isinstance(error, RecursionError) else str(error)
