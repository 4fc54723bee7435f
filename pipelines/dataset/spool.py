"""Rows on disk while a stage sorts them out: their lines in one file, what is compared of them in columns.

Memory holds the columns that are asked for, a few bytes a row, and never the rows.
"""

import array
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# One file a column; the type codes are those of the array module.
COLUMNS: dict[str, str] = {
    "offset": "Q",  # of the row's line
    "length": "I",  # in bytes, without the newline
    "asked_offset": "Q",  # of the row's normalised question
    "asked_length": "I",
    "id": "Q",
    "asks": "Q",  # hash of the normalised prompt: equal prompts
    "whole": "Q",  # hash of the normalised prompt and completion: equal rows
    "group": "Q",
    "label": "I",
    "split": "B",
    "origin": "H",  # number of the source
    "time": "d",
}
ROWS_IN_MEMORY = 8192

Rows = Sequence[int] | np.ndarray


class SpoolWriter:
    """Takes rows one by one; `close` before they are read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.num_rows = 0
        self._at = self._asked_at = 0
        self._labels: dict[str, int] = {}
        self._columns = {name: array.array(code) for name, code in COLUMNS.items()}
        self._files = {name: (folder / f"{name}.column").open("wb") for name in COLUMNS}
        self._lines = (folder / "rows.jsonl").open("wb")
        self._asked = (folder / "asked.txt").open("wb")

    def add(self, line: bytes, asked: str, label: str, **values: float) -> None:
        """One row: its line without the newline, its normalised question, its label, the other columns by name."""
        question = asked.encode()
        values |= {
            "offset": self._at,
            "length": len(line),
            "asked_offset": self._asked_at,
            "asked_length": len(question),
            "label": self._labels.setdefault(label, len(self._labels)),
        }
        for name, column in self._columns.items():
            column.append(values[name])  # type: ignore[arg-type]
        self._lines.write(line + b"\n")
        self._at += len(line) + 1
        self._asked.write(question)
        self._asked_at += len(question)
        self.num_rows += 1
        if self.num_rows % ROWS_IN_MEMORY == 0:
            self._flush()

    def _flush(self) -> None:
        for name, column in self._columns.items():
            column.tofile(self._files[name])
            del column[:]

    def close(self) -> "Spool":
        """Ends writing; returns what was written, ready to be read."""
        self._flush()
        for file in (self._lines, self._asked, *self._files.values()):
            file.close()
        (self.folder / "labels.json").write_text(json.dumps(list(self._labels)), encoding="utf-8")
        return Spool(self.folder)


class Spool:
    """The rows that a `SpoolWriter` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels: list[str] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self._lines = (folder / "rows.jsonl").open("rb")
        self._asked = (folder / "asked.txt").open("rb")
        self._num_rows = (folder / "id.column").stat().st_size // np.dtype(COLUMNS["id"]).itemsize

    def __len__(self) -> int:
        return self._num_rows

    def column(self, name: str) -> np.ndarray:
        """A column as an array over all rows."""
        return np.fromfile(self.folder / f"{name}.column", dtype=COLUMNS[name])

    def lines(self, rows: Rows) -> Iterator[bytes]:
        """Lines of these row numbers, in their order, without the newline."""
        return self._pieces(self._lines, "offset", "length", rows)

    def records(self, rows: Rows) -> Iterator[dict[str, Any]]:
        """The rows of these numbers as dictionaries."""
        return (json.loads(line) for line in self.lines(rows))

    def asked(self, rows: Rows) -> list[str]:
        """The normalised questions of these rows."""
        return [piece.decode() for piece in self._pieces(self._asked, "asked_offset", "asked_length", rows)]

    def _pieces(self, file: BinaryIO, offset: str, length: str, rows: Rows) -> Iterator[bytes]:
        starts, sizes = (self._at(name, rows) for name in (offset, length))
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            yield os.pread(file.fileno(), size, start)

    def _at(self, name: str, rows: Rows) -> np.ndarray:
        """A column at these rows; the file is mapped, so that only what is touched is read."""
        if not len(rows):
            return np.zeros(0, COLUMNS[name])
        return np.memmap(self.folder / f"{name}.column", dtype=COLUMNS[name], mode="r")[np.asarray(rows)]

    def close(self) -> None:
        self._lines.close()
        self._asked.close()
