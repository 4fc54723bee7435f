"""Twenty-five kinds of defect in a thousand records: all told in one pass, quickly, without a model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data_defects import NUM_RECORDS, Planted, sound, write
from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.dataset.rows import read_rows
from pipelines.errors import DataError, UserError
from pipelines.prepare import prepare

HEAVY = ("torch", "transformers.modeling_utils", "mlflow", "datasets", "scipy", "matplotlib", "presidio_analyzer")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Planted]]:
    import json

    folder = tmp_path_factory.mktemp("defects")
    held = [sound(NUM_RECORDS + number) for number in range(1, 9)]
    (folder / "heldout.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in held))
    return folder, write(folder / "train.jsonl")


def overrides(folder: Path) -> list[str]:
    paths = [f"task.sources.{split}.path={folder / split}.jsonl" for split in ("train", "heldout")]
    return ["task=my_conversations", *paths]


def test_each_is_told_with_its_line_and_reason_and_nothing_heavy_is_imported(
    planted: tuple[Path, list[Planted]], tmp_path: Path
) -> None:
    folder, defects = planted
    code = (
        "import sys, pipelines.__main__ as launcher; code = launcher.run(sys.argv[1:]); "
        f"print('heavy', *(name for name in {HEAVY} if name in sys.modules)); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "prepare", *overrides(folder)]
    places = [f"paths.rows={tmp_path / 'rows'}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    done = subprocess.run([*command, *places], cwd=PROJECT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"25 defects in 25 of {NUM_RECORDS + 8:,} records; mend them, or set prepare.on_error")
    told = dict(
        line.removeprefix("tunesmith: ").removeprefix(f"{folder}/train.jsonl:").split(": ", 1) for line in lines[:-1]
    )
    assert sorted(map(int, told)) == [defect.line for defect in defects]
    assert list(map(int, told)) == [defect.line for defect in defects]
    for defect in defects:
        assert defect.words in told[str(defect.line)], told[str(defect.line)]
    assert done.stdout.splitlines()[-1] == "heavy"
    assert not list((tmp_path / "rows").glob("*"))
    assert not (tmp_path / "mlflow.db").exists()


def test_the_rest_goes_on_under_quarantine(planted: tuple[Path, list[Planted]], tmp_path: Path) -> None:
    folder, _ = planted
    off = ["prepare.duplicates.near=off", "prepare.contamination.policy=record", "prepare.on_error=quarantine"]
    done = prepare(compose([*overrides(folder), *off]).config, tmp_path / "rows")
    kept = sum(len(read_rows(tmp_path / "rows" / f"{split}.jsonl")) for split in ("train", "validation"))
    assert kept == NUM_RECORDS - 25
    assert done["quarantine"]["num_records"] == 25
    assert done["sources"]["train"]["records"] == "messages"
    assert len((tmp_path / "rows" / "quarantine.jsonl").read_bytes().splitlines()) == 25


def test_a_file_of_no_known_shape_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n' * 500)
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError) as error:
        prepare(compose(overrides(tmp_path)).config, tmp_path / "rows")
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path}/train.jsonl: none of its first 20 records is recognised; the rest was not read"
    assert "train.jsonl:1: not recognised by the fields 'text'; set records to one of messages" in lines[1]
    assert len(lines) == 22


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["sql='select 1'", "url=postgresql://me:secret@db/x"], "task.sources.train.url: it holds a password"),
        (["rows=/no/such/folder"], "/no/such/folder: no manifest.json"),
        (["hub=team/data", "parts=[train]"], "task.sources.train.hub: can't ask the Hub for team/data"),
    ],
)
def test_a_place_that_is_wrong_is_named_by_its_source(
    planted: tuple[Path, list[Planted]], tmp_path: Path, given: list[str], said: str
) -> None:
    folder, _ = planted
    words = [*overrides(folder), "task.sources.train.path=null", *(f"task.sources.train.{each}" for each in given)]
    with pytest.raises(UserError) as error:
        prepare(compose(words).config, tmp_path / "rows")
    assert str(error.value).startswith(said)
