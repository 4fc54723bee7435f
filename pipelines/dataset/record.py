"""What a source gives, whatever it is: a place and a mapping of fields in the types of JSON."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects, Place

_AS_IT_IS = (str, int, bool, type(None))
_COLUMNS = ("prompt", "completion", "answer", "label", "group", "time", "system", "tools", "context")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source; `part` is its split, or its part of a CLINC150 file."""

    place: Place
    fields: Mapping[str, Any]
    part: str | None = None


def wanted_columns(source: Source) -> list[str]:
    """The columns that the configuration names, each once."""
    named = (getattr(source, field) for field in _COLUMNS)
    return list(dict.fromkeys(name for name in (*named, *source.keep) if name is not None))


def column_reasons(columns: Sequence[str], wanted: Collection[str], whole: str) -> list[str]:
    """Why a table's columns can't be read: one is missing, or is there twice. `whole` is what has them."""
    has = f"{whole} has {', '.join(map(repr, columns)) or 'nothing'}"
    others = set(columns).difference(wanted)
    missing = [f"no column {name!r}; {has}{did_you_mean(name, others)}" for name in wanted if name not in columns]
    twice = sorted({name for name in wanted or columns if name and columns.count(name) > 1})
    return missing + [f"column {name!r} occurs {columns.count(name)} times" for name in twice]


def plain_records(
    rows: Iterator[Mapping[str, Any]], place: Callable[[int], Place], defects: Defects, part: str | None = None
) -> Iterator[Record]:
    """Rows of a table, numbered from 1, as records; a value that JSON can't hold is a defect of its row."""
    for number, row in enumerate(rows, start=1):
        try:
            fields = {name: plain(value) for name, value in row.items()}
        except ValueError:
            for name, reason in _unfit(row):
                defects.add(place(number), f"{name!r} {reason}")
        else:
            yield Record(place(number), fields, part)


def _unfit(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in row.items():
        try:
            plain(value)
        except ValueError as error:
            yield name, str(error)


def plain(value: Any) -> Any:
    """The value in the types of JSON: instants as ISO 8601 text, spans as seconds, a NaN (how pandas writes that
    there is none) as null.

    Raises ValueError saying what the value is where JSON has no place for it.
    """
    if type(value) in _AS_IT_IS:
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | Decimal):
        return _number(float(value))
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        # pandas' NaT calls itself a datetime.
        return value.isoformat() if value == value else None
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"is binary ({len(value)} bytes), expected text")
    if type(value).__module__ == "numpy":
        return plain(value.tolist())
    raise ValueError(f"is a {type(value).__name__}, expected text, a number, a list or an object")


def _number(value: float) -> float | None:
    if math.isinf(value):
        raise ValueError("is infinite, expected a number")
    return None if math.isnan(value) else value
