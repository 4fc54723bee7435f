"""Which rows are held out and which validate: by hash, label, time, shares, groups and clusters, or as before."""

from collections import Counter
from pathlib import Path

import pytest

from pipelines import product as products
from pipelines.errors import UserError
from tests.preparation.conftest import Prepare, Prepared, record, sentence

ROWS = [record(sentence(number), "abc"[number % 3]) for number in range(240)]
APART = ["prepare.duplicates.near=off", "prepare.contamination.near=false"]
NO_HELDOUT = "~task.sources.heldout"


def carve(prepared: Prepare, rows: list[dict[str, object]], method: str, *overrides: str) -> Prepared:
    return prepared(rows, None, *APART, NO_HELDOUT, f"prepare.heldout.method={method}", *overrides)


def publish(done: Prepared) -> Path:
    """What the stage runner does with a prepare's folder."""
    about = {"digests": {name: split["digest"] for name, split in done.summary["splits"].items()}}
    about["num_rows"] = {name: split["num_rows"] for name, split in done.summary["splits"].items()}
    target = done.folder.with_name(f"{done.folder.name}-published")
    return products.publish(done.folder, target, "rows", {"run_id": "r"}, about).folder


def test_by_hash_rows_that_are_added_move_none(prepared: Prepare) -> None:
    before, after = carve(prepared, ROWS[:160], "hash"), carve(prepared, ROWS, "hash")
    first = {row["query"] for row in ROWS[:160]}
    assert before.asked("heldout") == after.asked("heldout") & first
    assert 5 <= len(before.asked("heldout")) <= 30


def test_stratified_takes_its_share_of_each_label(prepared: Prepare) -> None:
    done = carve(prepared, ROWS, "stratified", "prepare.heldout.share=0.2")
    assert Counter(row.label for row in done.rows("heldout")) == {"a": 16, "b": 16, "c": 16}
    every = [done.asked(split) for split in ("train", "validation", "heldout")]
    assert sum(map(len, every)) == len(set.union(*every)) == 240


def test_by_time_what_is_held_out_comes_after(prepared: Prepare) -> None:
    rows = [row | {"when": f"2026-{1 + n // 20:02d}-{1 + n % 20:02d}T08:00"} for n, row in enumerate(ROWS)]
    column = "task.sources.train.time=when"
    done = carve(prepared, rows, "time", column, "prepare.validation_method=time")
    order = {row["query"]: row["when"] for row in rows}
    newest = {split: [order[asked] for asked in done.asked(split)] for split in ("train", "validation", "heldout")}
    assert len(newest["heldout"]) == 24
    assert max(newest["train"]) < min(newest["validation"]) <= max(newest["validation"]) < min(newest["heldout"])
    after = carve(prepared, rows, "time", column, "prepare.heldout.after='2026-12-01'")
    assert after.asked("heldout") == {asked for asked, when in order.items() if when >= "2026-12-01"}


def test_a_split_by_time_needs_times(prepared: Prepare, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a split by time needs `time`"):
        carve(prepared, ROWS, "time")
    for when in ("soon", "nan", "inf"):
        rows = [row | {"when": when} for row in ROWS]
        with pytest.raises(UserError, match=rf"train\.jsonl:1: 'when': expected an instant such as .*, got '{when}'"):
            carve(prepared, rows, "time", "task.sources.train.time=when")
    timed = [row | {"when": 0} for row in ROWS]
    assert carve(prepared, timed, "time", "task.sources.train.time=when").summary["heldout"]["method"] == "time"
    other = ["task.sources.other.prompt=query", "task.sources.other.answer=label"]
    (tmp_path / "other.csv").write_text("query,label\nno time at all,a\n")
    with pytest.raises(UserError, match="a split by time needs `time`"):
        carve(
            prepared,
            timed,
            "time",
            "task.sources.train.time=when",
            f"task.sources.other.path={tmp_path}/other.csv",
            *other,
        )


def test_matched_reaches_the_shares_that_are_asked(prepared: Prepare) -> None:
    shares = "prepare.heldout.shares={a: 0.5, b: 0.3, c: 0.2}"
    done = carve(prepared, ROWS, "matched", shares, "prepare.heldout.size=40")
    assert Counter(row.label for row in done.rows("heldout")) == {"a": 20, "b": 12, "c": 8}
    assert done.summary["heldout"]["achieved_shares"] == {"a": 0.5, "b": 0.3, "c": 0.2}
    largest = carve(prepared, ROWS, "matched", shares)
    assert Counter(row.label for row in largest.rows("heldout")) == {"a": 8, "b": 5, "c": 3}
    with pytest.raises(UserError, match=r"prepare\.heldout\.shares: no row has the label 'd'; nearest valid name"):
        carve(prepared, ROWS, "matched", "prepare.heldout.shares={a: 0.5, d: 0.5}")


def test_a_customer_is_on_one_side(prepared: Prepare) -> None:
    rows = [row | {"customer": f"c{number // 4}"} for number, row in enumerate(ROWS)]
    done = carve(prepared, rows, "hash", "task.sources.train.group=customer", "prepare.heldout.share=0.3")
    customer = {row["query"]: row["customer"] for row in rows}
    sides = [{customer[asked] for asked in done.asked(split)} for split in ("train", "validation", "heldout")]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60
    assert len(done.asked("heldout")) > 24


def test_near_duplicates_are_on_one_side(prepared: Prepare) -> None:
    # Different labels keep them from being removed; a score on one would still be a score on the other.
    rows = [
        record(f"{sentence(n)} again", "ab"[copy]) if copy else record(sentence(n), "a")
        for n in range(90)
        for copy in (0, 1)
    ]
    options = ["prepare.heldout.method=hash", "prepare.heldout.share=0.4", "prepare.validation_method=hash"]
    done = prepared(
        rows, None, NO_HELDOUT, *options, "prepare.validation_share=0.3", "prepare.contamination.near=false"
    )
    for split in ("train", "validation", "heldout"):
        asked = done.asked(split)
        assert asked
        assert {text.removesuffix(" again") for text in asked if text.endswith(" again")} == {
            text for text in asked if not text.endswith(" again")
        }


def test_fixed_held_out_rows_stay_whatever_is_added(prepared: Prepare) -> None:
    first = carve(prepared, ROWS[:160], "hash")
    held, text = first.asked("heldout"), (first.folder / "heldout.jsonl").read_bytes()
    fixed = publish(first)
    more = [*ROWS, record(sorted(held)[0] + "!", "a")]
    again = carve(prepared, more, "stratified", f"prepare.heldout.fixed={fixed}")
    assert (again.folder / "heldout.jsonl").read_bytes() == text
    assert again.summary["splits"]["heldout"]["digest"] == first.summary["splits"]["heldout"]["digest"]
    assert again.summary["splits"]["heldout"]["num_rows"] == len(held)
    assert not held & (again.asked("train") | again.asked("validation"))
    # The row that asks the same as a held-out one was added later, and is contamination.
    assert sorted(held)[0] + "!" not in again.asked("train") | again.asked("validation")
    gone = carve(prepared, ROWS[100:], "stratified", f"prepare.heldout.fixed={fixed}")
    assert (gone.folder / "heldout.jsonl").read_bytes() == text


def test_sources_are_mixed_by_weight(prepared: Prepare, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("query,label\n" + "".join(f"{sentence(n)},a\n" for n in range(500, 560)))
    add = [f"task.sources.other.path={other}", "task.sources.other.prompt=query", "task.sources.other.answer=label"]
    weights = ["task.sources.train.weight=0.75", "task.sources.other.weight=0.25"]
    done = prepared(ROWS, None, *APART, *add, *weights, "prepare.validation_share=0")
    count = Counter(row.source.rpartition("/")[2].partition(":")[0] for row in done.rows("train"))
    assert count == {"train.jsonl": 180, "other.csv": 60}
    assert {name: mix["share"] for name, mix in done.summary["mixture"].items()} == {"train": 0.75, "other": 0.25}
    assert done.summary["funnel"][-1] == {"step": "weights of the sources", "removed": 60, "rows": 241}


def test_another_runs_rows_are_a_source(prepared: Prepare) -> None:
    rows = publish(prepared(ROWS, None, *APART))
    source = ["~task.sources.train.path", f"+task.sources.train.rows={rows}"]
    done = prepared(ROWS, None, *APART, *source, "task.sources.train.prompt=null", "task.sources.train.answer=null")
    assert done.summary["sources"]["train"]["records"] == "row"
    assert len(done.rows("train")) == pytest.approx(228 * 0.95, abs=4)
    assert done.asked("train") | done.asked("validation") <= {row["query"] for row in ROWS}


def test_a_customer_of_another_runs_rows_is_on_one_side(prepared: Prepare) -> None:
    rows = [row | {"customer": f"c{number // 4}"} for number, row in enumerate(ROWS)]
    first = publish(prepared(rows, None, *APART, "task.sources.train.group=customer", "prepare.validation_share=0"))
    source = ["~task.sources.train.path", f"+task.sources.train.rows={first}", "prepare.heldout.share=0.3"]
    columns = ["task.sources.train.prompt=null", "task.sources.train.answer=null"]
    done = carve(prepared, rows, "hash", *source, *columns)
    customer = {row["query"]: row["customer"] for row in rows}
    sides = [{customer[asked] for asked in done.asked(split)} for split in ("train", "validation", "heldout")]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60


def test_held_out_sources_add_nothing_to_fixed_rows(prepared: Prepare) -> None:
    fixed = publish(prepared(ROWS, [record("held before"), record("held as well")], *APART))
    again = prepared(ROWS, [record("held before"), record("held later")], *APART, f"prepare.heldout.fixed={fixed}")
    assert again.asked("heldout") == {"held before", "held as well"}
    steps = {step["step"]: step["removed"] for step in again.summary["funnel"][1:]}
    assert steps["held out before"] == steps["of held-out sources and not held out before"] == 1
    total = sum(split["num_rows"] for split in again.summary["splits"].values())
    assert again.summary["funnel"][-1]["rows"] == total - 2
