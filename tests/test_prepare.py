"""The stage on the shipped data, for real, and on files that are wrong."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipelines.config.paths import CONF, PROJECT
from pipelines.config.schema import Config, Prepare, Task
from pipelines.dataset.rows import digest, read_rows
from pipelines.errors import DataError, UserError
from pipelines.prepare import Prepared, prepare

SPLITS = ("train", "validation", "heldout")


def make_config(task: str, changes: dict[str, Any] | None = None, seed: int = 42) -> Config:
    """The blocks that the stage reads, composed from conf/; `changes` are dotted keys."""
    composed = OmegaConf.create(
        {
            "task": OmegaConf.load(CONF / "task" / f"{task}.yaml"),
            "prepare": OmegaConf.load(CONF / "prepare.yaml"),
        }
    )
    for key, value in (changes or {}).items():
        OmegaConf.update(composed, key, value)
    blocks: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    return Config.model_construct(
        seed=seed, task=Task.model_validate(blocks["task"]), prepare=Prepare.model_validate(blocks["prepare"])
    )


def own_files(folder: Path, train: str, heldout: str) -> dict[str, Any]:
    (folder / "train.csv").write_text(f"query,label\n{train}")
    (folder / "heldout.csv").write_text(f"query,label\n{heldout}")
    return {f"task.sources.{split}.path": str(folder / f"{split}.csv") for split in ("train", "heldout")}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(make_config("support_routing"), tmp_path_factory.mktemp("rows"))


def test_the_shipped_data_gives_these_counts(shipped: Prepared) -> None:
    summary = json.loads((shipped.folder / "summary.json").read_text())
    counts = {name: (source["num_read"], source["num_kept"]) for name, source in summary["sources"].items()}
    assert counts == {
        "banking77_train": (10_003, 10_003),
        "banking77_test": (3_080, 3_080),
        "other_domains": (15_000, 1_000),
        "out_of_scope_train": (100, 100),
        "out_of_scope_validation": (100, 100),
        "out_of_scope_test": (1_000, 1_000),
    }
    assert shipped.num_rows["heldout"] == 4_080
    assert shipped.num_rows["train"] + shipped.num_rows["validation"] == 10_003 + 1_000 + 100 + 100
    assert shipped.num_rows["validation"] - 100 == pytest.approx(0.05 * 11_103, abs=78)
    assert summary["splits"]["heldout"]["num_out_of_scope"] == 1_000
    assert shipped.overlap_with_heldout["train"] + shipped.overlap_with_heldout["validation"] == 7


def test_the_summary_says_what_the_files_hold(shipped: Prepared) -> None:
    summary = json.loads((shipped.folder / "summary.json").read_text())
    assert summary["seed"] == 42
    assert summary["overlap_with_heldout"] == shipped.overlap_with_heldout
    for split in SPLITS:
        rows = read_rows(shipped.folder / f"{split}.jsonl")
        described = summary["splits"][split]
        assert described["num_rows"] == len(rows) == shipped.num_rows[split]
        assert described["digest"] == digest(rows) == shipped.digests[split]
        assert described["labels"] == Counter(row.label for row in rows)
        assert len(described["labels"]) == 78
        assert described["num_out_of_scope"] == described["labels"]["out_of_scope"]
    banking = summary["sources"]["banking77_train"]
    assert (banking["path"], banking["license"]) == ("data/banking77/train.csv", "CC-BY-4.0")
    assert banking["sha256"].startswith("b06e26ac6755")


def test_no_row_is_in_two_splits_and_order_is_by_id(shipped: Prepared) -> None:
    ids = {split: [row.id for row in read_rows(shipped.folder / f"{split}.jsonl")] for split in SPLITS}
    assert len({key for split in SPLITS for key in ids[split]}) == sum(shipped.num_rows.values())
    for split in SPLITS:
        assert ids[split] == sorted(ids[split])


def test_no_query_that_a_bank_answers_is_declined(shipped: Prepared) -> None:
    intents = {}
    data = json.loads((PROJECT / "data/clinc150/data_full.json").read_text())
    for query, intent in data["train"]:
        intents[query] = intent
    rows = read_rows(shipped.folder / "train.jsonl") + read_rows(shipped.folder / "validation.jsonl")
    declined = Counter(intents.get(row.prompt[0]["content"]) for row in rows if row.answer == "out_of_scope")
    banking = make_config("support_routing").task.sources["other_domains"].exclude
    assert len(banking) == 31
    assert not declined.keys() & set(banking)
    assert declined[None] == 200
    assert len(declined) > 100


def test_the_held_out_rows_are_these(shipped: Prepared) -> None:
    # Scores of two versions compare only on the same rows: whoever changes this breaks all before.
    assert shipped.digests["heldout"] == "0ff84dbd36c90da71b2de1587f8d9fe30edc42ae266dd4b4ce9eb09e0e9edc82"


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    body = "".join(f"question {n},label_{n % 7}\n" for n in range(500))
    files = own_files(tmp_path, body, "held out,label_0\n")
    first, second = (prepare(make_config("my_routing", files), tmp_path / name) for name in "ab")
    assert first.digests == second.digests
    for name in (*(f"{split}.jsonl" for split in SPLITS), "summary.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_seed_parts_the_rows_otherwise(tmp_path: Path) -> None:
    body = "".join(f"question {n},label_{n % 2}\n" for n in range(200))
    files = own_files(tmp_path, body, "held out,label_0\n")
    first, second = (prepare(make_config("my_routing", files, seed), tmp_path / str(seed)) for seed in (1, 2))
    assert first.digests["train"] != second.digests["train"]
    assert first.digests["heldout"] == second.digests["heldout"]


def test_shuffled_lines_give_the_same_split(tmp_path: Path) -> None:
    lines = [f"question {n},label_{n % 2}\n" for n in range(200)]
    kept = []
    for name, body in (("a", lines), ("b", lines[::-1])):
        files = own_files(tmp_path, "".join(body), "held out,label_0\n")
        prepare(make_config("my_routing", files), tmp_path / name)
        kept.append([row.id for row in read_rows(tmp_path / name / "validation.jsonl")])
    assert kept[0] == kept[1]
    assert kept[0]


def test_prompts_that_are_held_out_are_counted(tmp_path: Path) -> None:
    body = "Where is  IT,a\nwhere is it,a\nwhere was it,a\nother,b\n"
    files = own_files(tmp_path, body, "where is it,a\nelse,b\n")
    done = prepare(make_config("my_routing", files | {"prepare.validation_share": 0.0}), tmp_path / "rows")
    assert done.overlap_with_heldout == {"train": 2, "validation": 0}


def test_defects_of_all_sources_come_together_and_nothing_is_written(tmp_path: Path) -> None:
    files = own_files(tmp_path, "a,b\nonly one\n", "c,\n")
    with pytest.raises(DataError) as error:
        prepare(make_config("my_routing", files), tmp_path / "rows")
    assert str(error.value).splitlines() == [
        f"{tmp_path}/heldout.csv:2: 'label' is empty",
        f"{tmp_path}/train.csv:3: 1 field, the header has 2",
        "2 defects in the source files",
    ]
    assert not (tmp_path / "rows").exists()


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
    config = make_config("my_routing", files | {"task.verify": "short_answers:verify"})
    with pytest.raises(DataError, match=r"train\.csv:3: its own answer 'account' doesn't pass"):
        prepare(config, tmp_path / "rows")


def test_excluding_every_row_is_an_error(tmp_path: Path) -> None:
    files = own_files(tmp_path, "a,card\n", "c,card\n")
    config = make_config("my_routing", files | {"task.sources.train.exclude": ["card"]})
    with pytest.raises(UserError, match="no row is left for train after exclude and limit"):
        prepare(config, tmp_path / "rows")


def test_a_relative_path_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_files(tmp_path, "a,card\nb,card\n", "c,card\n")
    monkeypatch.chdir(tmp_path)
    paths = {f"task.sources.{split}.path": f"{split}.csv" for split in ("train", "heldout")}
    prepare(make_config("my_routing", paths), tmp_path / "rows")
    assert read_rows(tmp_path / "rows" / "heldout.jsonl")[0].source == "heldout.csv:2"
