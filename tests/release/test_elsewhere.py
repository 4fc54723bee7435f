"""A version where nothing of ours is: a Hub whose branch has moved on, and an environment of its own requirements."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file

from benchmarks import registry_package
from pipelines.config.paths import PROJECT
from pipelines.tracking import registry
from tests.conftest import World
from tests.hub_server import Hub
from tests.release.conftest import ask

pytestmark = pytest.mark.slow
TRAINED, NEWER = "a" * 40, "b" * 40


def newer(model: Path, folder: Path) -> Path:
    """The model with other weights under the same names."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    moved = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_hub_s_branch_may_move_between_training_and_loading(world: World, tmp_path: Path) -> None:
    """MLflow's own PEFT flavour would take what the branch is at now."""
    commits = {TRAINED: world.model, NEWER: newer(world.model, tmp_path / "newer")}
    hub = Hub("team/tiny", commits, main=TRAINED)
    environment = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    try:
        command = [sys.executable, "-m", "pipelines", "finetune", *world.overrides(), "model.id=team/tiny"]
        home = {"HF_HOME": str(tmp_path / "trained")}
        done = subprocess.run(
            command, cwd=PROJECT, env={**os.environ, **environment, **home}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        hub.main = NEWER
        hub.asked.clear()
        mlflow.set_tracking_uri(world.store)
        version = registry.find(f"models:/{world.folder.name}@staging", "promote.model")
        assert version.tags["base.revision"] == TRAINED
        folder = registry.copied(version, tmp_path / "version")
        (tmp_path / "serving").mkdir()
        told = ask(str(folder), tmp_path / "serving", HF_HOME=str(tmp_path / "serving"), **environment)
        assert told["found"] == told["recorded"]
        assert set(hub.asked) == {TRAINED}
        # A mirror whose commit holds other bytes is refused by the file's name.
        hub.commits[TRAINED] = commits[NEWER]
        (tmp_path / "mirrored").mkdir()
        with pytest.raises(AssertionError, match=r"model\.safetensors isn't the file that was trained on"):
            ask(str(folder), tmp_path / "mirrored", HF_HOME=str(tmp_path / "mirrored"), **environment)
    finally:
        hub.close()


def test_it_answers_the_same_in_an_environment_of_its_own_requirements(finished: World, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(finished.store)
    name = finished.folder.name
    assert MlflowClient().get_model_version(name, "1").tags["parity.passed"] == "true"
    folder = registry.copied(registry.find(f"models:/{name}/1", "promote.model"), tmp_path / "version")
    told = registry_package.fresh(tmp_path, folder / "requirements.txt", f"models:/{name}/1", finished.store)
    assert told["same"] == told["rows"] == 8
    assert not Path(told["code"]).is_relative_to(PROJECT)
