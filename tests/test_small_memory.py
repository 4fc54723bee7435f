"""Memory that runs out in the first steps: smaller micro-batches, the same training."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from benchmarks import random_model
from pipelines import __main__ as launcher
from pipelines import product as products
from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.policy.out_of_memory import smaller, what_fits
from tests.conftest import World

ROOM = 200  # megabytes: 64 rows at once ask for more, 16 for less

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose activations are the larger part of a step's memory."""
    folder = tmp_path_factory.mktemp("deep")
    random_model.write(
        folder, hidden_size=128, num_hidden_layers=16, intermediate_size=1024, num_attention_heads=4, head_dim=32
    )
    return folder


def overrides(world: World, rows: Path, model: Path, micro: int) -> list[str]:
    """Two steps of 64 rows."""
    sizes = [
        f"sft.trainer.per_device_train_batch_size={micro}",
        f"sft.trainer.gradient_accumulation_steps={64 // micro}",
    ]
    steps = ["sft.trainer.max_steps=2", "sft.trainer.eval_strategy=no", "sft.trainer.load_best_model_at_end=false"]
    steps += ["sft.early_stopping_patience=null"]
    return [*world.overrides(), f"sft.rows={rows}", f"model.id={model}", *sizes, *steps]


def trained(megabytes: int, given: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.small_memory", str(megabytes), "sft", *given],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def last_run(world: World) -> mlflow.entities.Run:
    mlflow.set_tracking_uri(world.store)
    client = MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    found: mlflow.entities.Run = client.search_runs(experiments, "tags.stage = 'sft'", max_results=1)[0]
    return found


@pytest.mark.slow
def test_what_does_not_fit_is_trained_in_smaller_micro_batches(
    world: World, finished: World, deep_model: Path, tmp_path: Path
) -> None:
    rows = finished.product("rows")
    done = trained(ROOM, overrides(world, rows, deep_model, 64))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "out of memory at step 1 with 64 rows at once, 32 x 2 instead" in done.stdout
    folder = world.product("adapter")
    sizes = products.load(folder).about["micro_batch"]
    size = sizes["per_device_train_batch_size"]["trained"]
    assert size < 64
    assert sizes["per_device_train_batch_size"]["asked"] == 64
    assert sizes["gradient_accumulation_steps"] == {"asked": 1, "trained": 64 // size}
    run = last_run(world)
    assert run.info.status == "FINISHED"
    assert run.data.tags["micro_batch"].endswith(f"{size} x {64 // size} instead")
    assert len(run.inputs.dataset_inputs) == 2
    assert not (folder / "micro_batch.json").exists()

    begun_so = World(tmp_path / "smaller", world.store, world.model, world.rows)
    assert launcher.run(["sft", *overrides(begun_so, rows, deep_model, size)]) == 0
    other = begun_so.product("adapter")
    assert (folder / "adapter_model.safetensors").read_bytes() == (other / "adapter_model.safetensors").read_bytes()
    assert "micro_batch" not in products.load(other).about
    assert losses(folder) == losses(other)


def losses(folder: Path) -> list[float]:
    history: list[dict[str, Any]] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.slow
def test_what_never_fits_is_refused_naming_what_would(world: World, finished: World, deep_model: Path) -> None:
    done = trained(1, overrides(world, finished.product("rows"), deep_model, 1))
    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stderr.splitlines()[-1]
    assert "sft.trainer: out of memory at step 1 with a micro-batch of one row; what needs less: a lower" in said
    assert "sft.trainer.max_length (now 512), sft.trainer.gradient_checkpointing=true, adapter=qlora" in said
    assert last_run(world).info.status == "FAILED"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((16, 1, None), (8, 2, None)),
        ((16, 2, None), (8, 4, None)),
        ((6, 1, None), (3, 2, None)),
        ((3, 1, None), (1, 3, None)),
        ((3, 4, None), (1, 12, None)),
        ((8, 2, 4), (4, 4, 8)),
        ((6, 1, 1), (3, 2, 2)),
        ((1, 8, None), None),
    ],
)
def test_as_many_rows_make_a_step_and_a_generation(
    given: tuple[int, int, int | None], expected: tuple[int, int, int | None] | None
) -> None:
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
    found = smaller(dict(zip(names, given, strict=True)))
    assert found == (
        expected and {name: value for name, value in zip(names, expected, strict=True) if value is not None}
    )


def test_a_later_step_is_told_with_what_needs_less() -> None:
    config = compose(["grpo.trainer.per_device_train_batch_size=8", "adapter=qlora"]).config
    said = what_fits(config, "grpo", 40, evaluating=False, first=False)
    assert said.startswith(
        "grpo.trainer: out of memory at step 40 with 8 rows at once, after 39 that fitted; what needs"
    )
    assert "grpo.trainer.per_device_train_batch_size=4" in said
    assert "max_completion_length (now 32)" in said
    assert "qlora" not in said
    assert "per_device_eval_batch_size" in what_fits(config, "sft", 40, evaluating=True, first=False)
