from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects
from pipelines.dataset.read import Record, read_source
from pipelines.errors import DataError

MakeSource = Callable[..., Source]
Read = Callable[..., tuple[list[Record], list[str]]]


@pytest.fixture
def make_source() -> MakeSource:
    def make(path: Path | str, **changes: Any) -> Source:
        fields: dict[str, Any] = {
            "path": str(path),
            "format": "csv",
            "split": "train",
            "prompt": "query",
            "answer": "label",
            "constant_answer": None,
            "parts": None,
            "exclude": [],
            "limit": None,
            "license": "CC0-1.0",
        }
        return Source(**(fields | changes))

    return make


@pytest.fixture
def read(make_source: MakeSource, tmp_path: Path) -> Read:
    """Reads bytes as a file of a format: its records, and its defects without the folder and the total."""

    def run(content: bytes, format: str = "csv", **changes: Any) -> tuple[list[Record], list[str]]:
        path = tmp_path / f"source.{format}"
        path.write_bytes(content)
        defects = Defects(max_reported=100)
        records = list(read_source(make_source(path, format=format, **changes), defects))
        try:
            defects.raise_if_any()
        except DataError as error:
            return records, [line.removeprefix(f"{path}") for line in str(error).splitlines()[:-1]]
        return records, []

    return run
