"""Data sets as the datasets library reads them: local folders of files, offline."""

from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects
from pipelines.dataset.read import content_digest, read_source, source_files
from pipelines.errors import Unreachable, UserError
from pipelines.product import digest_of, folder_files
from tests.dataset.conftest import ReadSource

MakeSource = Callable[..., Source]
CONFIGS = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: data/train-*.parquet}
- config_name: large
  data_files:
  - {split: train, path: data/test-*.parquet}
---
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits; the training split in two files."""
    folder = tmp_path / "tickets"
    (folder / "data").mkdir(parents=True)
    for name, texts in {"train-0": ["a", "b"], "train-1": ["c"], "test-0": ["d"]}.items():
        messages = [[{"role": "user", "content": text}] for text in texts]
        parquet.write_table(pyarrow.table({"text": texts, "messages": messages}), folder / "data" / f"{name}.parquet")
    return folder


def failure(source: Source) -> str:
    with pytest.raises(UserError) as error:
        list(read_source(source, Defects(5), 1000))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_training_split_is_read_unless_others_are_named(read_all: ReadSource, folder: Path) -> None:
    records, defects = read_all(hub=str(folder))
    assert defects == []
    assert [(str(record.place), record.fields["text"], record.part) for record in records] == [
        (f"{folder}/train:{row}", text, "train") for row, text in enumerate("abc", 1)
    ]
    assert records[0].fields["messages"] == [{"role": "user", "content": "a"}]
    both, _ = read_all(hub=str(folder), parts=["test", "train"])
    assert [record.fields["text"] for record in both] == ["d", "a", "b", "c"]


def test_a_changed_folder_is_read_as_it_is_now(read_all: ReadSource, make_source: MakeSource, folder: Path) -> None:
    source = make_source(hub=str(folder))
    assert content_digest(source) == digest_of(folder_files(folder))
    read_all(hub=str(folder))
    parquet.write_table(pyarrow.table({"text": ["z"], "messages": [[]]}), folder / "data" / "train-1.parquet")
    assert content_digest(source) == digest_of(folder_files(folder))
    assert [record.fields["text"] for record in read_all(hub=str(folder))[0]] == ["a", "b", "z"]
    assert source_files(source) == []


def test_jsonl_files_of_a_folder_are_read(read_all: ReadSource, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "b", "n": null}\n')
    records, defects = read_all(hub=str(tmp_path), prompt="text")
    assert ([record.fields for record in records], defects) == ([{"text": "a", "n": 1}, {"text": "b", "n": None}], [])


def test_names_that_the_data_set_lacks(make_source: MakeSource, folder: Path) -> None:
    assert failure(make_source(hub=str(folder), parts=["tets"])) == (
        f"parts: {folder} has no split 'tets'; nearest valid name: test"
    )
    (folder / "README.md").write_text(CONFIGS)
    assert failure(make_source(hub=str(folder), subset="smal")).startswith(f"hub: {folder}: BuilderConfig 'smal' not")
    assert failure(make_source(hub=str(folder))).endswith("pick one among the available configs: ['small', 'large']")
    assert failure(make_source(hub=str(folder), revision="main")).startswith("revision: belongs to a data set of the")
    assert failure(make_source(hub="./nowhere")) == "hub: './nowhere' is neither a folder nor a Hub id (owner/name)"


def test_a_subset_is_read_alone(read_all: ReadSource, folder: Path) -> None:
    (folder / "README.md").write_text(CONFIGS)
    assert [record.fields["text"] for record in read_all(hub=str(folder), subset="large")[0]] == ["d"]


def test_a_missing_column_is_told_once(read_all: ReadSource, folder: Path) -> None:
    assert read_all(hub=str(folder), prompt="txt") == (
        [],
        [f"{folder}/train: no column 'txt'; the data set has 'text', 'messages'; nearest valid name: text"],
    )


def test_a_file_that_cannot_be_read_is_a_defect_of_its_split(read_all: ReadSource, folder: Path) -> None:
    (folder / "data" / "train-1.parquet").write_bytes(b"PAR1 no longer")
    _, (defect,) = read_all(hub=str(folder))
    assert defect.startswith(f"{folder}/train: can't be read: ")


def test_a_hub_that_does_not_answer_is_unreachable(make_source: MakeSource) -> None:
    source = make_source(hub="someone/tickets")
    for ask in (content_digest, lambda source: list(read_source(source, Defects(5), 1000))):
        with pytest.raises(Unreachable, match=r"^hub: can't ask the Hub for someone/tickets: "):
            ask(source)
    pinned = make_source(hub="someone/tickets", revision="0" * 40)
    assert content_digest(pinned) == "0" * 40
    with pytest.raises(Unreachable, match=r"^hub: someone/tickets: the Hub doesn't answer: "):
        list(read_source(pinned, Defects(5), 1000))
