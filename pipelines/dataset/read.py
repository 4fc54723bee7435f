"""Any source as records that know their place; every defect of a source is gathered, none ends the reading."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.config.schema import Source
from pipelines.dataset.clinc150 import clinc150_records
from pipelines.dataset.defects import Defects, Place
from pipelines.dataset.delimited import DELIMITERS, delimited_records
from pipelines.dataset.files import COMPRESSIONS, FORMATS, Found, Unreadable, check, find, format_of, opened
from pipelines.dataset.generated import generated_digest, generated_records
from pipelines.dataset.hub import hub_commit, hub_records
from pipelines.dataset.json_files import json_records, jsonl_records
from pipelines.dataset.lines import Text
from pipelines.dataset.prepared import split_files
from pipelines.dataset.record import Record, wanted_columns
from pipelines.dataset.sql import sql_records
from pipelines.dataset.tables import table_records
from pipelines.product import digest_of, file_hash

__all__ = ["Record", "content_digest", "read_source", "source_files"]


def read_source(source: Source, defects: Defects, max_line_bytes: int, name: str = "query") -> Iterator[Record]:
    """The records that are whole, in the source's order, as they are read; what is wrong goes to `defects`.

    `name` stands for an SQL source in its places. Raises UserError where the configuration of a database, a Hub
    data set, an experiment, a product or a generator is wrong, Unreachable where a service doesn't answer.
    """
    if source.kind == "path":
        yield from _path_records(source, defects, max_line_bytes)
    elif source.kind == "hub":
        yield from hub_records(source, defects)
    elif source.kind == "sql":
        yield from sql_records(source, defects, name)
    elif source.kind == "rows":
        for part, found in split_files(source).items():
            yield from _file_records(found, partial(_jsonl, part, max_line_bytes), defects)
    elif source.kind == "generate":
        yield from generated_records(source)
    else:
        from pipelines.tracking.traces import trace_records

        yield from trace_records(source, defects)


def source_files(source: Source) -> list[Path]:
    """The files that a `path` or `rows` source reads, sorted; none of any other, or where there is none."""
    return [found.path for found in _found(source)]


def content_digest(source: Source) -> str | None:
    """What the source holds, in one word; None where that is known only after reading, or nothing can be read.

    Of one file its sha256, of several a digest over their relative names and sha256s, of a Hub data set its
    commit, of generated rows a digest over what decides them. Raises UserError and Unreachable as `read_source` does.
    """
    if source.kind == "hub":
        return hub_commit(source)
    if source.kind == "generate":
        return generated_digest(source)
    hashes = {}
    try:
        for file in _found(source):
            check(file.path)
            hashes[file.name] = file_hash(file.path)
    except Unreadable:  # reading tells which file and why
        return None
    return next(iter(hashes.values())) if len(hashes) == 1 else digest_of(hashes) if hashes else None


def _found(source: Source) -> list[Found]:
    if source.kind == "rows":
        return sorted(split_files(source).values(), key=lambda found: found.name)
    try:
        return find(source.path, source.format) if source.path is not None else []
    except Unreadable:
        return []


def _path_records(source: Source, defects: Defects, max_line_bytes: int) -> Iterator[Record]:
    path = str(source.path)
    try:
        files = find(path, source.format)
    except Unreadable as error:
        defects.add(Place(path), str(error))
        return
    for found in files:
        yield from _file_records(found, partial(_read, source, max_line_bytes), defects)


def _file_records(found: Found, read: "partial[Iterator[Record]]", defects: Defects) -> Iterator[Record]:
    """The records of a file; one that can't be read, or holds nothing at all, is a defect."""
    watched, empty = _Watched(defects), True
    try:
        check(found.path)
        for record in read(found, watched):
            empty = False
            yield record
    except Unreadable as error:
        defects.add(Place(found.shown), str(error))
    else:
        if empty and not watched.faulty:
            defects.add(Place(found.shown), "holds no record")


class _Watched(Defects):
    """Passes defects on and knows whether there was one, be it one that an earlier source had as well."""

    def __init__(self, defects: Defects) -> None:
        self._defects, self.faulty = defects, False

    def add(
        self, place: Place, reason: str, hint: Callable[[], str] | None = None, raw: Callable[[], Any] | None = None
    ) -> None:
        self.faulty = True
        self._defects.add(place, reason, hint, raw)


def _read(source: Source, max_line_bytes: int, found: Found, defects: Defects) -> Iterator[Record]:
    format = _format(source, found)
    wanted = wanted_columns(source)
    if format in {"parquet", "arrow"}:
        yield from table_records(found.path, found.shown, format, wanted, defects)
        return
    with opened(found.path) as file:
        text = Text(file, found.shown, defects, max_line_bytes)
        if format in DELIMITERS:
            yield from delimited_records(text, format, wanted)
        elif format == "clinc150":
            yield from clinc150_records(text, source.parts or [])
        else:
            yield from (jsonl_records if format == "jsonl" else json_records)(text)


def _jsonl(part: str, max_line_bytes: int, found: Found, defects: Defects) -> Iterator[Record]:
    with opened(found.path) as file:
        for record in jsonl_records(Text(file, found.shown, defects, max_line_bytes)):
            yield Record(record.place, record.fields, part)


def _format(source: Source, found: Found) -> str:
    """Raises Unreadable where the ending tells nothing."""
    format = format_of(found.path) if source.format == "auto" else source.format
    if format is None:
        known = f"{' '.join(FORMATS)}, each also with {' '.join(COMPRESSIONS)}"
        raise Unreadable(f"has an unknown ending; set format, or use one of {known}")
    return format
