"""Rows as JSONL files: one row per line, UTF-8, sorted keys."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pipelines.dataset.row import Row
from pipelines.errors import DataError

_REQUIRED = {field.name for field in fields(Row) if field.default is MISSING}
_KNOWN = {field.name for field in fields(Row)}
_TEXTS = ("id", "task", "source", "group")
_MAY_BE_EMPTY = ("answer", "label")


def line_of(row: Row) -> str:
    """The row as its line, without the newline."""
    return json.dumps(row.as_dict(), ensure_ascii=False, sort_keys=True)


def digest(rows: Iterable[Row]) -> str:
    """sha256 over the lines, newlines included: what `sha256sum` says of the file."""
    state = hashlib.sha256()
    for row in rows:
        state.update(f"{line_of(row)}\n".encode())
    return state.hexdigest()


def write_rows(folder: Path, split: str, rows: Iterable[Row]) -> Path:
    """Writes `<split>.jsonl` into the folder and returns its path."""
    path = folder / f"{split}.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line_of(row)}\n" for row in rows)
    return path


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `write_rows` wrote; raises DataError with file and line."""
    if not path.is_file():
        raise DataError(f"{path}: no such file of rows; run prepare")
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(row_of(line.decode("utf-8")))
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}") from error
    return rows


def row_of(line: str | bytes) -> Row:
    """The row that a line holds. Raises ValueError where it holds none."""
    return _row(json.loads(line))


def _row(record: Any) -> Row:
    """Raises ValueError where the record is no row."""
    if not isinstance(record, dict):
        raise ValueError("a row is an object")
    if missing := sorted(_REQUIRED - record.keys()):
        raise ValueError(f"a row has {', '.join(missing)}")
    if unknown := sorted(record.keys() - _KNOWN):
        raise ValueError(f"a row has no {', '.join(unknown)}")
    for name in (*_TEXTS, *_MAY_BE_EMPTY):
        if not isinstance(record[name], str) or not (record[name] or name in _MAY_BE_EMPTY):
            raise ValueError(f"{name} is {record[name]!r}, expected text")
    for name in ("prompt", "completion", "rejected"):
        if name in record and not _are_messages(record[name], may_be_empty=name == "completion"):
            raise ValueError(f"{name} is no list of messages with role and content")
    tools = record.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError("tools is neither null nor a list of objects")
    if problem := further_problem(record):
        raise ValueError(problem)
    return Row.from_dict(record)


def further_problem(record: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields `accepted`, `context` and `kept` that a record has; None where nothing is."""
    for name in ("accepted", "context"):
        if name in record and not _are_texts(record[name]):
            return f"{name} is no list of texts"
    kept = record.get("kept", {"": ""})
    if not (isinstance(kept, dict) and kept and all(isinstance(value, str) for value in kept.values())):
        return "kept is no object of texts"
    return None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text for text in value)


def _are_messages(value: Any, may_be_empty: bool) -> bool:
    return isinstance(value, list) and (bool(value) or may_be_empty) and all(_is_message(item) for item in value)


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        return False
    # A message that calls tools may come without content.
    return isinstance(item.get("content"), str) or bool(item.get("tool_calls"))
