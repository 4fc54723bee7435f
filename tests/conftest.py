"""A small world for the stages: a real model built from a config, real rows, a real MLflow store."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}

from benchmarks import random_model
from pipelines import __main__ as launcher
from pipelines.config.paths import PROJECT
from pipelines.secrets import WATCHED

CARD = """\
capability: The query names one of six intents of a bank's customers.
labelled_by: The authors of Banking77; one person a query.
independence: Banking77's own test part; training sees none of it.
production: Not known, there is no production.
limits: Six intents and six queries of each.
version: "1"
date: "2026-11-26"
"""
INTENTS = ("card_arrival", "exchange_rate", "age_limit", "change_pin", "lost_or_stolen_card", "transfer_timing")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For models this small a second one only waits, and on a busy machine for long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of 0.4 M random parameters with the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    random_model.write(
        folder, hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=2, head_dim=32
    )
    return folder


@pytest.fixture(scope="session")
def small_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv and heldout.csv: real queries of six intents."""
    folder = tmp_path_factory.mktemp("rows")
    for name, source, count in (("train", "train", 16), ("heldout", "test", 6)):
        with (PROJECT / f"data/banking77/{source}.csv").open(encoding="utf-8", newline="") as stream:
            records = [r for r in csv.DictReader(stream) if r["category"] in INTENTS]
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["query", "label"])
            for intent in INTENTS:
                texts = [r["text"].strip() for r in records if r["category"] == intent][:count]
                writer.writerows([text, intent] for text in texts)
    (folder / "card.yaml").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a SQLite store made for this session of tests."""
    from pipelines.tracking.store import create_database

    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    create_database(uri)
    return uri


class World:
    """Runs the launcher on the small model and rows, everything it writes below one folder."""

    def __init__(self, folder: Path, store: str, model: Path, rows: Path) -> None:
        self.folder, self.store, self.model, self.rows = folder, store, model, rows

    def overrides(self) -> list[str]:
        return [
            "task=my_routing",
            f"task.sources.train.path={self.rows / 'train.csv'}",
            f"task.sources.heldout.path={self.rows / 'heldout.csv'}",
            "task.decline_label=age_limit",
            f"task.card={self.rows / 'card.yaml'}",
            "prepare.validation_share=0.2",
            f"model.id={self.model}",
            "adapter.peft.r=8",
            "sft.trainer.max_steps=6",
            "sft.trainer.per_device_train_batch_size=8",
            "sft.trainer.logging_steps=1",
            "evaluate.max_new_tokens=8",
            "evaluate.resamples=1000",
            "evaluate.robustness.rows=6",
            "evaluate.red_team.wraps=1",
            "evaluate.cost.rows=3",
            "tracking.system_metrics=false",
            f"tracking.uri={self.store}",
            f"paths.rows={self.folder / 'rows'}",
            f"paths.adapters={self.folder / 'adapters'}",
            f"paths.outputs={self.folder / 'outputs'}",
            f"package.registered_model={self.folder.name}",
            # The model is random and trains for seconds: the gate asks what it can show.
            "gate.rules.accuracy.value=0.0",
            "gate.compare.better_than_base.ask=non_inferior",
            "gate.compare.better_than_base.margin=0.99",
            "gate.compare.as_good_as_incumbent.margin=0.99",
            "gate.rules.declines.value=0.0",
            "gate.rules.over_refusal.value=1.0",
        ]

    def run(self, stage: str, *overrides: str) -> int:
        """The launcher's exit code, in this process."""
        return launcher.run([stage, *self.overrides(), *overrides])

    def product(self, kind: str) -> Path:
        """The only product of a kind."""
        root = {"rows": self.folder / "rows", "adapter": self.folder / "adapters"}
        (found,) = root.get(kind, self.folder / "outputs" / kind).glob("*/manifest.json")
        return found.parent


@pytest.fixture
def world(tmp_path: Path, store: str, small_model: Path, small_rows: Path) -> World:
    """A world of the test's own, in the shared store."""
    return World(tmp_path, store, small_model, small_rows)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, store: str, small_model: Path, small_rows: Path) -> World:
    """A world where the whole flow ran once, for tests that only look."""
    made = World(tmp_path_factory.mktemp("finished"), store, small_model, small_rows)
    assert made.run("finetune") == 0
    return made


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run sets for its process doesn't reach the next test."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", WATCHED):
        monkeypatch.delenv(name, raising=False)
    yield
    import signal

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
