"""Files bit for bit, verdicts row by row."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.evaluation.record import HELDOUT, Record
from pipelines.release.comparison import files, scores


def record(number: int, correct: bool | None) -> Record:
    empty = dict.fromkeys(("group", "label", "source", "kept", "prompt", "expected"), "")
    said = {"answer": "", "parsed": None, "declined": None, "error": None, "finished": True}
    counted = {"prompt_tokens": 1, "num_tokens": 1, "latency_s": None, "cost": None}
    return Record(HELDOUT, "adapter", str(number), "", in_scope=True, correct=correct, **empty, **said, **counted)  # type: ignore[arg-type]


def verdicts(path: Path, given: list[bool | None], groups: list[str | None] | None = None) -> Path:
    columns = {
        "row_id": [str(number) for number in range(len(given))],
        "group": pa.array(groups or [None] * len(given), pa.string()),
        "correct": pa.array(given, pa.bool_()),
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_files_are_compared_without_what_fonts_change() -> None:
    then = {"a.json": "1", "b.json": "2", "report.html": "3", "gone.json": "4"}
    found = files(then, {"a.json": "1", "b.json": "9", "report.html": "8", "new.json": "5"})
    assert (found.same, found.differ) == (["a.json"], ["b.json", "gone.json", "new.json"])
    assert not found.identical
    assert files(then, {**then, "report.html": "other"}).identical


@pytest.mark.parametrize(("turned", "within"), [(0, True), (1, True), (30, False)])
def test_verdicts_decide_by_their_paired_interval(turned: int, within: bool, tmp_path: Path) -> None:
    then = verdicts(tmp_path / "v.parquet", [True] * 40)
    found = scores(then, [record(number, number >= turned) for number in range(40)], 1000, 0)
    assert found is not None
    assert (found.within, found.turned, found.rows) == (within, turned, 40)
    assert found.now == pytest.approx(1 - turned / 40)


def test_rows_are_paired_by_their_ids_and_need_both_verdicts(tmp_path: Path) -> None:
    then = verdicts(tmp_path / "v.parquet", [True, None, False, True], ["g", None, "g", None])
    found = scores(
        then, [record(3, False), record(2, False), record(0, None), record(1, True), record(9, True)], 500, 0
    )
    assert found is not None
    assert (found.rows, found.then, found.now, found.turned) == (2, 0.5, 0.0, 1)
    assert scores(then, [record(9, True)], 500, 0) is None
