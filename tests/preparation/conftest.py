"""Small tasks over JSONL files, prepared for real."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.compose import compose
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows
from pipelines.prepare import prepare

SPLITS = ("train", "validation", "heldout")
Records = Sequence[dict[str, Any]]
Prepare = Callable[..., "Prepared"]

# Words that share few letters in a row, so that texts of different words are not alike.
WORDS = ("anvil", "brook", "cedar", "dwarf", "ember", "flint", "gourd", "heron", "ivory", "joust", "knoll", "lymph")


class Prepared:
    """What a prepare wrote and said."""

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.folder, self.summary = folder, summary

    def rows(self, split: str) -> list[Row]:
        return read_rows(self.folder / f"{split}.jsonl")

    def asked(self, split: str) -> set[str]:
        return {row.prompt[-1]["content"] for row in self.rows(split)}

    def removed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "removed.jsonl").read_text(encoding="utf-8").splitlines()]


def sentence(number: int) -> str:
    """A text of six words that is like no other number's."""
    at = [(number // len(WORDS) ** place + place * 5) % len(WORDS) for place in range(3)]
    return " ".join([WORDS[i] for i in at] + [f"{WORDS[i][::-1]}{number}" for i in at])


def record(question: str, label: str = "a", **more: Any) -> dict[str, Any]:
    return {"query": question, "label": label, **more}


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    """Prepares train and held-out records; without held-out ones there is no source of them."""
    count = iter(range(100))

    def run(train: Records, heldout: Records | None, *overrides: str, task: str = "my_routing") -> Prepared:
        given = {"train": train, "heldout": [record("never asked before")] if heldout is None else heldout}
        folder = tmp_path / str(next(count))
        folder.mkdir()
        for split, records in given.items():
            lines = "".join(f"{json.dumps(each)}\n" for each in records)
            (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        paths = [f"task.sources.{split}.path={tmp_path / split}.jsonl" for split in given]
        summary = prepare(compose([f"task={task}", *paths, *overrides]).config, folder)
        return Prepared(folder, summary)

    return run
