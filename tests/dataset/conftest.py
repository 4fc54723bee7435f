from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.paths import CONF
from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects
from pipelines.dataset.read import Record, read_source
from pipelines.errors import DataError

MakeSource = Callable[..., Source]
ReadSource = Callable[..., tuple[list[Record], list[str]]]
Read = Callable[..., tuple[list[Record], list[str]]]


@pytest.fixture
def make_source() -> MakeSource:
    """A source as conf/source.yaml completes it."""
    defaults = yaml.safe_load((CONF / "source.yaml").read_text(encoding="utf-8"))

    def make(path: Path | str | None = None, **changes: Any) -> Source:
        return Source(**(defaults | {"path": str(path) if path is not None else None} | changes))

    return make


@pytest.fixture
def read_all(make_source: MakeSource) -> ReadSource:
    """The records of a source and its defects, the total left out."""

    def run(path: Path | str | None = None, max_line_bytes: int = 1_000_000, **changes: Any) -> tuple[Any, list[str]]:
        defects = Defects(max_reported=100)
        records = list(read_source(make_source(path, **changes), defects, max_line_bytes, name="probe"))
        return records, reported(defects)

    return run


@pytest.fixture
def read(read_all: ReadSource, tmp_path: Path) -> Read:
    """Reads bytes as a file of a format: its records, and its defects without the folder."""

    def run(content: bytes, format: str = "csv", **changes: Any) -> tuple[list[Record], list[str]]:
        path = tmp_path / f"source.{format}"
        path.write_bytes(content)
        records, defects = read_all(path, **({"format": format, "prompt": "query", "label": "label"} | changes))
        return records, [line.removeprefix(f"{path}") for line in defects]

    return run


def reported(defects: Defects) -> list[str]:
    """The defects as a user reads them, the total left out."""
    try:
        defects.raise_if_any()
    except DataError as error:
        return str(error).splitlines()[:-1]
    return []


def lines_of(records: list[Record]) -> list[int | None]:
    return [record.place.line for record in records]
