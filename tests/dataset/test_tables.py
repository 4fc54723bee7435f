"""Parquet and Arrow files give plain values; what JSON can't hold is a defect of its row."""

import datetime
import gzip
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather, ipc, parquet

from tests.dataset.conftest import ReadSource, lines_of

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)


def write(path: Path, table: Any) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=1000)
    elif path.suffix == ".feather":
        feather.write_feather(table, str(path), compression="uncompressed")
    else:
        make = ipc.new_stream if path.suffix == ".arrow" else ipc.new_file
        with make(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("ending", ["parquet", "arrow", "ipc", "feather"])
def test_rows_are_numbered_through_all_batches(read_all: ReadSource, tmp_path: Path, ending: str) -> None:
    table = pyarrow.table({"query": [f"q{n}" for n in range(3000)], "messages": [MESSAGES] * 3000})
    records, defects = read_all(write(tmp_path / f"rows.{ending}", table), prompt="query")
    assert defects == []
    assert lines_of(records) == list(range(1, 3001))
    assert records[2999].fields == {"query": "q2999", "messages": MESSAGES}


def test_values_become_what_json_can_hold(read_all: ReadSource, tmp_path: Path) -> None:
    columns = {
        "instant": pyarrow.array([NOON], pyarrow.timestamp("us", "UTC")),
        "fine": pyarrow.array([1], pyarrow.timestamp("ns")),
        "day": pyarrow.array([NOON.date()]),
        "span": pyarrow.array([datetime.timedelta(minutes=1)]),
        "price": pyarrow.array([Decimal("1.50")]),
        "nan": pyarrow.array([float("nan")]),
        "none": pyarrow.array([None], pyarrow.string()),
        "class": pyarrow.array(["a"]).dictionary_encode(),
        "map": pyarrow.array([[("k", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int8())),
        "nested": pyarrow.array([{"when": [NOON]}]),
    }
    (record,), defects = read_all(write(tmp_path / "rows.parquet", pyarrow.table(columns)))
    assert defects == []
    assert record.fields == {
        "instant": "2026-01-02T12:00:00+00:00",
        "fine": "1970-01-01T00:00:00.000000001",
        "day": "2026-01-02",
        "span": 60.0,
        "price": 1.5,
        "nan": None,
        "none": None,
        "class": "a",
        "map": [["k", 1]],
        "nested": {"when": ["2026-01-02T12:00:00+00:00"]},
    }


def test_values_without_a_place_in_json_are_defects_of_their_rows(read_all: ReadSource, tmp_path: Path) -> None:
    columns = {"audio": [None, b"\0\1", None], "scores": [[1.0], [float("inf")], [2.0]]}
    path = write(tmp_path / "rows.parquet", pyarrow.table(columns))
    records, defects = read_all(path)
    assert lines_of(records) == [1, 3]
    assert defects == [
        f"{path}:2: 'audio' is binary (2 bytes), expected text",
        f"{path}:2: 'scores' is infinite, expected a number",
    ]


def test_a_missing_column_is_told_once(read_all: ReadSource, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", pyarrow.table({"querry": ["a", "b"], "label": ["c", "d"]}))
    assert read_all(path, prompt="query", answer="label") == (
        [],
        [f"{path}: no column 'query'; the table has 'querry', 'label'; nearest valid name: querry"],
    )


def test_a_compressed_table_is_read(read_all: ReadSource, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", pyarrow.table({"query": ["a"]}))
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
    records, defects = read_all(tmp_path / "rows.parquet.gz")
    assert (records[0].fields, defects) == ({"query": "a"}, [])


@pytest.mark.parametrize("ending", ["parquet", "arrow", "ipc", "feather"])
@pytest.mark.parametrize("damage", ["cut off", "overwritten", "text"])
def test_a_damaged_table_is_one_defect(read_all: ReadSource, tmp_path: Path, ending: str, damage: str) -> None:
    table = pyarrow.table({"query": [f"a question {n}" for n in range(5000)]})
    path = write(tmp_path / f"rows.{ending}", table)
    whole = path.read_bytes()
    if damage == "overwritten":
        # Where the schema or the footer's length stands.
        at = 2 if ending == "arrow" else len(whole) - 10
        path.write_bytes(whole[:at] + b"\xff" * 6 + whole[at + 6 :])
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut off" else b"query,label\na,b\n")
    _, (defect,) = read_all(path)
    kind = "parquet" if ending == "parquet" else "arrow"
    assert defect.startswith(f"{path}: is no whole {kind} file: ")


def test_text_that_is_not_utf8_is_one_defect(read_all: ReadSource, tmp_path: Path) -> None:
    binary = pyarrow.array([b"caf\xe9"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, binary.buffers())
    path = write(tmp_path / "rows.parquet", pyarrow.table({"query": text}))
    _, (defect,) = read_all(path)
    assert defect.startswith(f"{path}: is no whole parquet file: 'utf-8' codec can't decode byte 0xe9")
