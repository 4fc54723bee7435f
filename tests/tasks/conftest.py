import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.compose import compose
from pipelines.config.paths import CONF
from pipelines.config.schema import Source, Task

MakeTask = Callable[..., Task]


def make_source(path: Path, split: str, **changes: Any) -> Source:
    """A source as conf/source.yaml completes it."""
    fields = yaml.safe_load((CONF / "source.yaml").read_text(encoding="utf-8"))
    given = {"path": str(path), "split": split, "prompt": "query", "answer": "label", "license": "CC0-1.0"}
    return Source(**(fields | given | changes))


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """A task of two labels over two small files; `files` adds or replaces CSV bodies by split."""

    def make(files: dict[str, str] | None = None, sources: dict[str, Any] | None = None, **changes: Any) -> Task:
        (tmp_path / "labels.json").write_text(json.dumps(["card", "cash"]))
        bodies = {"train": "a,card\nb,cash\n", "heldout": "c,card\n"} | (files or {})
        for split, body in bodies.items():
            (tmp_path / f"{split}.csv").write_text(f"query,label\n{body}")
        made = {split: make_source(tmp_path / f"{split}.csv", split, **(sources or {})) for split in bodies}
        fields: dict[str, Any] = {
            "name": "toy",
            "verify": "label",
            "audit": None,
            "environment": None,
            "max_turns": None,
            "json_schema": None,
            "instruction": None,
            "labels": str(tmp_path / "labels.json"),
            "decline_label": None,
            "card": None,
            "red_team": [],
            "sources": made,
        }
        return Task(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def support_routing() -> Task:
    """The shipped task, as the launcher composes it."""
    return compose([]).config.task
