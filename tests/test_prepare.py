"""The stage on the shipped data, for real, and on files that are wrong."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.dataset.rows import digest, read_rows
from pipelines.errors import DataError, UserError
from pipelines.prepare import prepare

SPLITS = ("train", "validation", "heldout")
LISTS = ("removed.jsonl", "quarantine.jsonl", "contamination.jsonl")
FILES = (*(f"{split}.jsonl" for split in SPLITS), *LISTS, "summary.json", "report.html")


def own_files(folder: Path, train: str, heldout: str = "something held out,label_0\n") -> list[str]:
    """Overrides of a task over two CSV files."""
    (folder / "train.csv").write_text(f"query,label\n{train}")
    (folder / "heldout.csv").write_text(f"query,label\n{heldout}")
    given = [f"task.sources.{split}.path={folder / split}.csv" for split in ("train", "heldout")]
    return ["task=my_routing", "prepare.duplicates.near=off", "prepare.contamination.near=false", *given]


def config_of(*overrides: str) -> Config:
    return compose(overrides).config


def rows_in(folder: Path, split: str) -> list[Row]:
    return read_rows(folder / f"{split}.jsonl")


def asked(folder: Path, split: str) -> list[str]:
    return sorted(row.prompt[-1]["content"] for row in rows_in(folder, split))


def listed(folder: Path, name: str = "removed") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def questions(count: int, labels: int) -> str:
    """Records that share no words but a few, so that none is like another."""
    return "".join(
        f"{'abcdefghij'[n % 10] * 5}{n} word{n * 7} thing{n * 13},label_{n % labels}\n" for n in range(count)
    )


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    prepare(config_of(), folder)
    return folder


@pytest.fixture(scope="module")
def summary(shipped: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shipped / "summary.json").read_text(encoding="utf-8"))
    return found


def test_the_shipped_sources_give_these_counts(summary: dict[str, Any]) -> None:
    counts = {name: (s["num_read"], s["num_left_out"] + s["num_kept"]) for name, s in summary["sources"].items()}
    assert counts == {
        "banking77_train": (10_003, 10_003),
        "banking77_test": (3_080, 3_080),
        "other_domains": (15_000, 15_000),
        "out_of_scope_train": (100, 100),
        "out_of_scope_validation": (100, 100),
        "out_of_scope_test": (1_000, 1_000),
    }
    assert summary["splits"]["heldout"]["num_rows"] == 4_080
    assert summary["splits"]["heldout"]["num_out_of_scope"] == 1_000
    train = summary["splits"]["train"]["num_rows"] + summary["splits"]["validation"]["num_rows"]
    assert train == summary["funnel"][-1]["rows"] - 4_080
    assert summary["splits"]["validation"]["num_rows"] == pytest.approx(0.05 * train + 100, abs=78)


def test_the_funnel_adds_up_to_the_rows(shipped: Path, summary: dict[str, Any]) -> None:
    funnel = summary["funnel"]
    assert [step["step"] for step in funnel] == [
        "records read",
        "excluded labels",
        "limits of the sources",
        "exact duplicates",
        "near-duplicates",
        "contaminated",
    ]
    for before, step in itertools.pairwise(funnel):
        assert before["rows"] - step["removed"] == step["rows"]
    assert funnel[0]["rows"] == 29_283
    assert funnel[-1]["rows"] == sum(split["num_rows"] for split in summary["splits"].values())
    reasons = Counter(record["reason"].partition(":")[0] for record in listed(shipped))
    removed = {step["step"]: step["removed"] for step in funnel[3:]}
    assert reasons == {
        "exact duplicate": removed["exact duplicates"],
        "near-duplicate": removed["near-duplicates"],
        "contamination": removed["contaminated"],
    }


def test_the_summary_says_what_the_files_hold(shipped: Path, summary: dict[str, Any]) -> None:
    assert summary["seed"] == 42
    for split in SPLITS:
        rows = rows_in(shipped, split)
        described = summary["splits"][split]
        assert described["num_rows"] == len(rows)
        assert described["digest"] == digest(rows)
        assert described["labels"] == Counter(row.label for row in rows)
        assert described["num_labels"] == len(described["labels"]) == 78
        assert described["num_out_of_scope"] == described["labels"]["out_of_scope"]
    banking = summary["sources"]["banking77_train"]
    assert (banking["place"], banking["license"]) == ("data/banking77/train.csv", "CC-BY-4.0")
    assert banking["sha256"].startswith("b06e26ac6755")


def test_no_row_is_in_two_splits_and_order_is_by_id(shipped: Path, summary: dict[str, Any]) -> None:
    ids = {split: [row.id for row in rows_in(shipped, split)] for split in SPLITS}
    total = sum(split["num_rows"] for split in summary["splits"].values())
    assert len({key for split in SPLITS for key in ids[split]}) == total
    for split in SPLITS:
        assert ids[split] == sorted(ids[split])


def test_no_query_that_a_bank_answers_is_declined(shipped: Path) -> None:
    data = json.loads((PROJECT / "data/clinc150/data_full.json").read_text())
    intents = dict(data["train"])
    rows = rows_in(shipped, "train") + rows_in(shipped, "validation")
    declined = Counter(intents.get(row.prompt[0]["content"]) for row in rows if row.answer == "out_of_scope")
    banking = config_of().task.sources["other_domains"].exclude
    assert len(banking) == 31
    assert not declined.keys() & set(banking)
    assert len(declined) > 100


def test_the_held_out_rows_are_these(summary: dict[str, Any]) -> None:
    # Scores of two versions compare only on the same rows: whoever changes this breaks all before.
    digests = {split: made["digest"] for split, made in summary["splits"].items()}
    assert digests["heldout"] == "0ff84dbd36c90da71b2de1587f8d9fe30edc42ae266dd4b4ce9eb09e0e9edc82"


def test_no_row_for_training_asks_what_is_held_out(shipped: Path) -> None:
    held = {" ".join(row.prompt[-1]["content"].casefold().split()) for row in rows_in(shipped, "heldout")}
    for split in ("train", "validation"):
        assert not held & {" ".join(row.prompt[-1]["content"].casefold().split()) for row in rows_in(shipped, split)}


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    files = own_files(tmp_path, questions(300, 7) + questions(20, 7))
    for name in "ab":
        prepare(config_of(*files), tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(FILES)


def test_another_seed_parts_the_rows_otherwise(tmp_path: Path) -> None:
    files = own_files(tmp_path, questions(200, 2))
    first, second = (prepare(config_of(*files, f"seed={seed}"), tmp_path / str(seed)) for seed in (1, 2))
    assert first["splits"]["train"]["digest"] != second["splits"]["train"]["digest"]
    assert first["splits"]["heldout"]["digest"] == second["splits"]["heldout"]["digest"]


def test_shuffled_lines_give_the_same_split(tmp_path: Path) -> None:
    lines = questions(200, 2).splitlines(keepends=True)
    kept = []
    for name, body in (("a", lines), ("b", lines[::-1])):
        prepare(config_of(*own_files(tmp_path, "".join(body))), tmp_path / name)
        kept.append([row.id for row in rows_in(tmp_path / name, "validation")])
    assert kept[0] == kept[1]
    assert kept[0]


def test_defects_of_all_sources_come_together_and_nothing_is_written(tmp_path: Path) -> None:
    files = own_files(tmp_path, "a,b\nonly one\n", "c,\n")
    with pytest.raises(DataError) as error:
        prepare(config_of(*files), tmp_path / "rows")
    assert str(error.value).splitlines() == [
        f"{tmp_path}/heldout.csv:2: 'label' is empty",
        f"{tmp_path}/train.csv:3: 1 field, the header has 2",
        "2 defects in 2 of 3 records; mend them, or set prepare.on_error=quarantine to go on without them",
    ]
    assert not list((tmp_path / "rows").glob("*.jsonl"))


def test_defective_records_go_to_the_quarantine(tmp_path: Path) -> None:
    files = own_files(tmp_path, "first question,x\n,y\nonly one\nlast question,z\n")
    done = prepare(config_of(*files, "prepare.on_error=quarantine", "prepare.validation_share=0"), tmp_path / "rows")
    assert asked(tmp_path / "rows", "train") == ["first question", "last question"]
    held = listed(tmp_path / "rows", "quarantine")
    assert {(record["source"], record["reason"]) for record in held} == {
        (f"{tmp_path}/train.csv:3", "'query' is empty"),
        (f"{tmp_path}/train.csv:4", "1 field, the header has 2"),
    }
    assert done["quarantine"]["num_records"] == 2
    assert done["sources"]["train"]["num_defective"] == 2
    assert done["sources"]["train"]["num_read"] == 4
    assert done["funnel"][:2] == [
        {"step": "records read", "rows": 5},
        {"step": "defective records", "removed": 2, "rows": 3},
    ]


def test_a_file_that_is_missing_is_no_record_to_set_aside(tmp_path: Path) -> None:
    files = own_files(tmp_path, "a,b\n")
    (tmp_path / "heldout.csv").unlink()
    with pytest.raises(DataError, match=r"heldout\.csv: no such file"):
        prepare(config_of(*files, "prepare.on_error=quarantine"), tmp_path / "rows")


def test_a_gold_answer_that_its_own_verifier_refuses_is_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short_answers.py").write_text(
        "from pipelines.tasks import Verdict\n"
        "def verify(completion, row):\n"
        "    return Verdict(completion == row.answer and len(completion) < 5, completion)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    files = own_files(tmp_path, "a,card\nb,account\n", "c,card\n")
    with pytest.raises(DataError, match=r"train\.csv:3: its own answer 'account' doesn't pass"):
        prepare(config_of(*files, "task.verify=short_answers:verify"), tmp_path / "rows")


def test_mistyped_labels_and_exclusions_are_defects(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["card", "cash"]')
    files = [*own_files(tmp_path, "a,card\nb,crad\n", "c,Cash\n"), f"task.labels={tmp_path}/labels.json"]
    with pytest.raises(DataError) as error:
        prepare(config_of(*files, "task.sources.train.exclude=[csah]"), tmp_path / "rows")
    assert str(error.value).splitlines()[:-1] == [
        f"{tmp_path}/heldout.csv:2: no label 'Cash'; nearest valid name: cash",
        f"{tmp_path}/train.csv: exclude: no record has the label 'csah'; nearest valid name: crad",
        f"{tmp_path}/train.csv:3: no label 'crad'; nearest valid name: card",
    ]


def test_excluding_every_row_is_an_error(tmp_path: Path) -> None:
    files = own_files(tmp_path, "a,card\n", "c,card\n")
    with pytest.raises(UserError, match="no row is left for train after exclude, limit and cleaning"):
        prepare(config_of(*files, "task.sources.train.exclude=[card]"), tmp_path / "rows")


def test_limit_keeps_a_seeded_sample(tmp_path: Path) -> None:
    files = [*own_files(tmp_path, questions(60, 2)), "task.sources.train.limit=10"]
    kept = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(config_of(*files, f"seed={seed}"), tmp_path / name)
        kept.append(sorted(asked(tmp_path / name, "train") + asked(tmp_path / name, "validation")))
    assert len(kept[0]) == 10
    assert kept[0] == kept[1] != kept[2]


def test_a_relative_path_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = own_files(tmp_path, "a,card\nb,card\n", "c,card\n")
    monkeypatch.chdir(tmp_path)
    paths = [f"task.sources.{split}.path={split}.csv" for split in ("train", "heldout")]
    prepare(config_of(*files, *paths), tmp_path / "rows")
    assert rows_in(tmp_path / "rows", "heldout")[0].source == "heldout.csv:2"


def test_a_source_that_changed_under_its_digest_is_refused(tmp_path: Path) -> None:
    files = own_files(tmp_path, "a,card\nb,card\n")
    digest_now = prepare(config_of(*files), tmp_path / "rows")["sources"]["train"]["sha256"]
    pinned = config_of(*files, f"task.sources.train.sha256={digest_now}")
    prepare(pinned, tmp_path / "again")
    with (tmp_path / "train.csv").open("a") as file:
        file.write("c,card\n")
    with pytest.raises(DataError, match=rf"task\.sources\.train\.sha256: expected {digest_now}, .* it has changed"):
        prepare(pinned, tmp_path / "refused")
