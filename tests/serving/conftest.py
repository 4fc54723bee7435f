"""Registered versions that a server can be held to: with recorded answers, and a second one that answers otherwise."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import mlflow
import pytest
from mlflow.models import Model as MlflowModel
from safetensors.numpy import load_file, save_file

from pipelines import product
from pipelines.config.paths import PROJECT
from pipelines.policy.chat import Decoding, generate
from pipelines.policy.served import load_served
from pipelines.policy.template import render
from pipelines.serving.smoke import RECORDED
from pipelines.tracking import registry
from pipelines.tracking.registry import Version
from tests.conftest import World
from tests.tracking.servers import free_port

QUESTIONS = (
    "Where is my card?",
    "How old do I have to be?",
    "What is the exchange rate today?",
    "I lost my card in the train",
    "How do I change my PIN?",
    "When will my transfer arrive?",
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "track_card",
            "description": "Where a card is.",
            "parameters": {"type": "object", "properties": {"card": {"type": "string"}}},
        },
    }
]


@dataclass(frozen=True)
class Released:
    """Versions of one registered model: two that answer differently, and one whose recorded answers are wrong."""

    store: str
    name: str
    first: Version
    other: Version
    wrong: Version
    answers: Mapping[str, list[dict[str, Any]]]  # URI -> what it answers


@pytest.fixture(scope="session")
def released(finished: World, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """Made from what the flow packaged, registered under a name of their own."""
    mlflow.set_tracking_uri(finished.store)
    made = registry.find(f"models:/{finished.folder.name}@staging")
    root = tmp_path_factory.mktemp("released")
    plain = registry.copied(made, root / "plain")
    other = Path(shutil.copytree(plain, root / "other"))
    _change_adapter(other, registry.described(other, "the version")[0])
    wrong = Path(shutil.copytree(plain, root / "wrong"))
    run_id, name = made.tags["adapter.run"], "served"
    answers, versions = {}, []
    for folder in (plain, other, wrong):
        found = _answered(folder)
        if folder is wrong:
            found[2] = {**found[2], "answer": "something else"}
        path = folder / RECORDED
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
        model_id, digest = registry.log_model(run_id, name, folder, {})
        versions.append(registry.register(name, model_id, run_id, {"files.digest": digest, "serving.vllm": "true"}))
        answers[versions[-1].uri] = found
    first, second, third = versions
    assert [row["answer"] for row in answers[first.uri]] != [row["answer"] for row in answers[second.uri]]
    return Released(finished.store, name, first, second, third, answers)


def _change_adapter(version: Path, folder: Path) -> None:
    """Other weights, so that it answers otherwise; sealed anew as a product, and as what the version holds."""
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: (value[::-1] * 40).copy() for name, value in weights.items()}, folder / "adapter_model.safetensors"
    )
    manifest = json.loads((folder / product.MANIFEST).read_text(encoding="utf-8"))
    (folder / product.MANIFEST).unlink()
    again = folder.with_name("again")
    made = product.publish(folder, again, "adapter", manifest["made_by"], manifest["about"])
    again.rename(folder)
    described = MlflowModel.load(str(version))
    described.flavors["python_function"]["config"]["digests"]["adapter"] = made.digest
    described.save(str(version / "MLmodel"))


def _answered(folder: Path) -> list[dict[str, Any]]:
    """What the version in a folder answers, as package records it."""
    adapter, settings = registry.described(folder, "the version")
    served = load_served(settings, adapter)
    rows = []
    for number, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        tools = TOOLS if number == 1 else None
        prompt = render(served.tokenizer, [messages], [tools], served.template, prompt=True)
        found = generate(served.model, served.tokenizer, prompt, Decoding(served.max_new_tokens), 1)[0]
        rows.append(
            {"row_id": f"row-{number}", "messages": messages, "tools": tools, "answer": found.text, "tokens": []}
        )
    return rows


class Serving:
    """`python -m pipelines serve` as a process, and what it printed."""

    def __init__(self, log: Path, released: Released, *overrides: str) -> None:
        self.log, self.port = log, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        given = [f"tracking.uri={released.store}", f"paths.outputs={log.parent}", f"port={self.port}", *overrides]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SERVE_TEST_KEY": "the-key-of-users"}
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines", "serve", *given],
                cwd=PROJECT,
                env=variables,
                stdout=stream,
                stderr=stream,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def until(self, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 150
        while not there():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def ended(self) -> int:
        return self.process.wait(timeout=150)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(timeout=60)


@contextmanager
def serving(log: Path, released: Released, *overrides: str) -> Iterator[Serving]:
    """Up for the block, and stopped behind it."""
    found = Serving(log, released, *overrides)
    try:
        found.until(lambda: "answers as" in found.said)
        found.until(lambda: _up(found.address))
        yield found
    finally:
        if found.process.poll() is None:
            found.stop()


def _up(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/health", timeout=2).is_success
    except httpx2.HTTPError:
        return False
