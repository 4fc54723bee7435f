import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipelines.config.paths import CONF
from pipelines.config.schema import Source, Task

MakeTask = Callable[..., Task]


def make_source(path: Path, split: str, **changes: Any) -> Source:
    fields: dict[str, Any] = {
        "path": str(path),
        "format": "csv",
        "split": split,
        "prompt": "query",
        "answer": "label",
        "constant_answer": None,
        "parts": None,
        "exclude": [],
        "limit": None,
        "license": "CC0-1.0",
    }
    return Source(**(fields | changes))


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
            "instruction": None,
            "labels": str(tmp_path / "labels.json"),
            "decline_label": None,
            "sources": made,
        }
        return Task(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def support_routing() -> Task:
    """The shipped task, as the launcher composes it."""
    task = OmegaConf.load(CONF / "task" / "support_routing.yaml")
    composed = OmegaConf.to_container(OmegaConf.create({"task": task}), resolve=True)
    assert isinstance(composed, dict)
    return Task.model_validate(composed["task"])
