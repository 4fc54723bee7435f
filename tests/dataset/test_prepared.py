"""Rows that an earlier prepare wrote, by folder and by run."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from pipelines.config.schema import Source, Tracking
from pipelines.dataset.defects import Defects
from pipelines.dataset.read import content_digest, read_source, source_files
from pipelines.errors import UserError
from pipelines.product import file_hash, publish
from pipelines.tracking.run import started
from pipelines.tracking.store import open_store
from tests.dataset.conftest import ReadSource

MakeSource = Callable[..., Source]
ROW = {"id": "1", "prompt": [{"role": "user", "content": "hi"}], "answer": "hello", "tools": None}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A product with two training rows and one held-out row."""
    work = tmp_path / "rows.partial"
    work.mkdir()
    for split, ids in (("train", "12"), ("heldout", "3")):
        (work / f"{split}.jsonl").write_text("".join(json.dumps(ROW | {"id": n}) + "\n" for n in ids))
    return publish(work, tmp_path / "rows", "rows", {"run_id": "0"}, {}).folder


def failure(source: Source) -> str:
    with pytest.raises(UserError) as error:
        list(read_source(source, Defects(5), 1000))
    return str(error.value)


def test_the_training_rows_are_read_unless_others_are_named(read_all: ReadSource, rows: Path) -> None:
    records, defects = read_all(rows=str(rows))
    assert defects == []
    assert [(str(record.place), record.part) for record in records] == [
        (f"{rows}/train.jsonl:1", "train"),
        (f"{rows}/train.jsonl:2", "train"),
    ]
    assert records[0].fields == ROW
    assert [record.fields["id"] for record in read_all(rows=str(rows), parts=["heldout", "train"])[0]] == [
        "3",
        "1",
        "2",
    ]


def test_its_files_and_digest(make_source: MakeSource, rows: Path) -> None:
    source = make_source(rows=str(rows), parts=["train", "heldout"])
    assert source_files(source) == [rows / "heldout.jsonl", rows / "train.jsonl"]
    assert content_digest(make_source(rows=str(rows))) == file_hash(rows / "train.jsonl")


def test_what_is_no_whole_product_of_rows_is_refused(make_source: MakeSource, rows: Path, tmp_path: Path) -> None:
    assert "no manifest.json; expected a folder that a stage has finished" in failure(make_source(rows=str(tmp_path)))
    assert failure(make_source(rows=str(rows), parts=["held"])) == (
        "parts: no split 'held' of rows; nearest valid name: heldout"
    )
    assert failure(make_source(rows=str(rows), parts=["validation"])) == f"rows: {rows} holds no validation.jsonl"
    with (rows / "train.jsonl").open("a") as file:
        file.write("{}\n")
    assert "train.jsonl: its sha256 differs" in failure(make_source(rows=str(rows)))
    other = tmp_path / "other.partial"
    other.mkdir()
    (other / "train.jsonl").write_text("{}\n")
    publish(other, tmp_path / "other", "scores", {}, {})
    assert failure(make_source(rows=f"{tmp_path}/other")).endswith("holds scores, expected rows that prepare wrote")


def test_a_run_names_its_rows(read_all: ReadSource, make_source: MakeSource, rows: Path, store: str) -> None:
    open_store(Tracking(uri=store, experiment="tunesmith", system_metrics=False, patience_s=0))
    with started("prepare", {"product.folder": str(rows)}) as made:
        pass
    records, defects = read_all(rows=f"run:{made.id}")
    assert ([record.fields["id"] for record in records], defects) == (["1", "2"], [])
    assert str(records[0].place) == f"{rows}/train.jsonl:1"
    with started("prepare", {"reused_from": made.id}) as reused:
        pass
    assert failure(make_source(rows=f"run:{reused.id}")).endswith(f"it reused that of run {made.id}")
    assert failure(make_source(rows="run:nonsense")).startswith("rows: run 'nonsense': ")
    mlflow.set_tracking_uri(None)
