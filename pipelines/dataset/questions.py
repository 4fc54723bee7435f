"""Questions as fingerprints: what a model was trained on, told without the rows themselves."""

import re
from collections.abc import Iterable
from pathlib import Path

from pipelines.dataset.normal import normalised, text_hash
from pipelines.dataset.row import Row, question
from pipelines.errors import DataError

FILE = "training_questions.txt"
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def fingerprint(row: Row) -> str:
    """64 bits of the row's question in the form in which duplicates are looked for, as 16 hex digits."""
    return f"{text_hash(normalised(question(row.prompt))):016x}"


def fingerprints(rows: Iterable[Row]) -> set[str]:
    """Those of all the rows."""
    return {fingerprint(row) for row in rows}


def write_questions(folder: Path, rows: Iterable[Row], earlier: Path | None = None) -> Path:
    """Writes the fingerprints of the rows' questions, each once, in order, one a line.

    `earlier` is the folder of what is trained on: its questions are written too, where it tells them.
    """
    known = fingerprints(rows)
    if earlier is not None and (earlier / FILE).exists():
        known |= read_questions(earlier / FILE)
    path = folder / FILE
    path.write_text("".join(f"{found}\n" for found in sorted(known)), encoding="ascii")
    return path


def read_questions(path: Path) -> set[str]:
    """What `write_questions` wrote. Raises DataError for another file."""
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not _FINGERPRINT.fullmatch(line):
            raise DataError(f"{path}:{number}: expected 16 hex digits, got {line[:40]!r}")
    return set(lines)
