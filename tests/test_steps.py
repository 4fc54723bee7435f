"""Reinforcement and distillation through the launcher: losses and gradients don't depend on the micro-batch."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.rows import read_rows
from tests.conftest import World
from tests.test_distill import given as given_to_distill  # noqa: F401 - a fixture
from tests.test_grpo import given as given_to_grpo  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def history(world: World, stage: str, given: list[str], micro: int, tmp_path: Path) -> list[tuple[float, float]]:
    """Loss and norm of the gradient of every step of four, eight rows or answers each."""
    own = World(tmp_path / f"by_{micro}", world.store, world.model, world.rows)
    sizes = [
        f"{stage}.trainer.per_device_train_batch_size={micro}",
        f"{stage}.trainer.gradient_accumulation_steps={8 // micro}",
    ]
    assert own.run(stage, *given, *sizes) == 0
    entries: list[dict[str, Any]] = json.loads((own.product("adapter") / "training.json").read_text(encoding="utf-8"))
    return [(entry["loss"], entry["grad_norm"]) for entry in entries if "loss" in entry]


@pytest.mark.parametrize("recipe", ["dr_grpo", "dapo"])
def test_reinforcement(world: World, given_to_grpo: list[str], recipe: str, tmp_path: Path) -> None:  # noqa: F811
    given = [*given_to_grpo, f"recipe={recipe}", "task.verify=tests.own_verifier:even", "grpo.trainer.max_steps=3"]
    given += ["grpo.trainer.mask_truncated_completions=false"] * (recipe == "dapo")  # or nothing is learnt
    whole, divided = (history(world, "grpo", given, micro, tmp_path) for micro in (8, 2))
    assert any(norm > 0 for _, norm in whole)
    for one, other in zip(whole, divided, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_distillation(world: World, given_to_distill: list[str], tmp_path: Path) -> None:  # noqa: F811
    given = [*given_to_distill, "distill.trainer.max_steps=3", "distill.trainer.max_completion_length=8"]
    whole, divided = (history(world, "distill", given, micro, tmp_path) for micro in (8, 2))
    assert all(norm > 0 for _, norm in whole)
    for one, other in zip(whole, divided, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_what_is_not_finite_stops_every_stage(
    world: World,
    given_to_grpo: list[str],  # noqa: F811
    given_to_distill: list[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An adapter scale at which one step overflows float32; nothing is logged before the end."""
    given = {
        "grpo": [*given_to_grpo, "task.verify=tests.own_verifier:even", "grpo.start=base"],
        "distill": [*given_to_distill, "distill.trainer.max_completion_length=8"],
    }
    for stage, overrides in given.items():
        huge = [f"adapter.peft.lora_alpha={10**38}", f"{stage}.trainer.optim=sgd", f"{stage}.trainer.max_grad_norm=0.0"]
        huge += [f"{stage}.trainer.learning_rate=0.99", f"{stage}.trainer.max_steps=12"]
        huge += [f"{stage}.trainer.logging_steps=100", f"{stage}.trainer.save_steps=1"]
        assert world.run(stage, *overrides, *huge) == 2
        said = capsys.readouterr().err
        assert re.search(r"tunesmith: step \d+: (loss|gradient of|weights of).* not finite, and nothing", said), said
        for name in re.findall(r"rows (.+?)\)", said):
            known = {row.id for row in read_rows(Path(overrides[0].partition("=")[2]) / "train.jsonl")}
            assert set(name.split(", ")) <= known
        assert not list(world.folder.glob("adapters/*/manifest.json"))
