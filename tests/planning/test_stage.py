"""The stage as the launcher runs it, and what training stages do before they load anything."""

import json

import pytest

from tests.conftest import World


def test_the_plan_is_a_product_in_a_run_of_its_own(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("plan", "model=qwen3_8b", "model.id=Qwen/Qwen3-8B", "compute=gpu_24gb", "adapter.peft.r=16") == 0
    folder = world.product("plan")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    assert plan["adapter"]["parameters"] == 43_646_976
    assert plan["configured"]["compute"] == "gpu_24gb"
    printed = capsys.readouterr().out
    assert "sft of qwen3_8b: 8.19 B parameters" in printed
    assert "loss over TRL's fused head" in (folder / "plan.md").read_text(encoding="utf-8")
    assert "<table>" in (folder / "plan.html").read_text(encoding="utf-8")
    from mlflow import MlflowClient

    made_by = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["made_by"]
    run = MlflowClient(world.store).get_run(made_by["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["plan/memory_gib"] == pytest.approx(plan["configured"]["total"])


def test_training_that_cant_fit_is_refused_before_anything_is_opened(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("model=llama_3_3_70b", "model.id=meta-llama/Llama-3.3-70B-Instruct", "compute=gpu_24gb")
    for stage in ("sft", "grpo", "finetune"):
        assert world.run(stage, *given) == 2
    assert capsys.readouterr().err.count("GiB expected of 23.5 GiB on the card") == 3
    assert not list(world.folder.iterdir())


def test_a_folder_is_planned_from_its_own_config(world: World) -> None:
    """No profile is kept for it: counted by injection, its layers simulated."""
    assert world.run("plan", "plan.stage=grpo", "adapter.peft.r=5") == 0
    plan = json.loads((world.product("plan") / "plan.json").read_text(encoding="utf-8"))
    assert not plan["model"]["kept"]
    assert plan["model"]["total"] < 2_000_000
    assert all(row["fits"] for row in plan["rows"])
