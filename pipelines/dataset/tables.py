"""Parquet and Arrow files, a batch at a time."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.dataset.defects import Defects, Place
from pipelines.dataset.files import Unreadable, is_compressed, opened
from pipelines.dataset.record import Record, column_reasons, plain_records

_BATCH = 1024
_FILE_MARK = b"ARROW1"


def table_records(path: Path, shown: str, format: str, wanted: Sequence[str], defects: Defects) -> Iterator[Record]:
    """The rows of a file, numbered from 1. Raises Unreadable where it is damaged or holds another format."""
    with _seekable(path) as file:
        with _reading(format):
            columns, batches = (_parquet if format == "parquet" else _arrow)(file)
        reasons = column_reasons(columns, wanted, "the table")
        for reason in reasons:
            defects.add(Place(shown), reason)
        if not reasons:
            yield from plain_records(_rows(batches, format), lambda row: Place(shown, row), defects)


@contextmanager
def _seekable(path: Path) -> Iterator[BinaryIO]:
    """The file, or what it decompresses to, on disk: a table is read from its end."""
    with opened(path) as file:
        if not is_compressed(path):
            yield file
            return
        with tempfile.TemporaryFile() as whole:
            shutil.copyfileobj(file, whole)
            whole.seek(0)
            yield whole


def _parquet(file: BinaryIO) -> tuple[list[str], Iterator[Any]]:
    """Names of the columns, and the batches."""
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file)
    return table.schema_arrow.names, table.iter_batches(batch_size=_BATCH)


def _arrow(file: BinaryIO) -> tuple[list[str], Iterator[Any]]:
    """Of Arrow's file format, which Feather is too, and of its stream format, which `datasets` writes."""
    from pyarrow import ipc

    mark = file.read(len(_FILE_MARK))
    file.seek(0)
    if mark != _FILE_MARK:
        stream = ipc.open_stream(file)
        return stream.schema.names, iter(stream)
    table = ipc.open_file(file)
    return table.schema.names, (table.get_batch(number) for number in range(table.num_record_batches))


def _rows(batches: Iterator[Any], format: str) -> Iterator[Mapping[str, Any]]:
    while True:
        with _reading(format):
            batch = next(batches, None)
        if batch is None:
            return
        for start in range(0, batch.num_rows, _BATCH):
            with _reading(format):
                rows = batch.slice(start, _BATCH).to_pylist()
            yield from rows


@contextmanager
def _reading(format: str) -> Iterator[None]:
    """Whatever pyarrow says of a damaged file becomes Unreadable."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, EOFError, ValueError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unreadable(f"is no whole {format} file: {reason}") from None
