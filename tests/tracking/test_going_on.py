"""Flows and stages that were cut or whose tracking server went away, through the launcher."""

import os
import threading
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines import product as products
from tests.conftest import World
from tests.tracking.servers import Server


def of_stage(stage: str) -> list[mlflow.entities.Run]:
    experiment = MlflowClient().get_experiment_by_name("going-on").experiment_id
    return list(MlflowClient().search_runs([experiment], f"tags.stage = '{stage}'"))


@pytest.mark.slow
def test_training_outlives_its_server_and_the_next_start_sends_the_rest(
    finished: World, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server dies while training runs: the adapter is made, exit code 4; back again it gets every step once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    server = Server(tmp_path)
    server.start()
    settings = [f"sft.rows={finished.product('rows')}", f"tracking.uri={server.address}"]
    settings += [
        "tracking.experiment=going-on",
        "sft.trainer.max_steps=40",
        "sft.trainer.save_steps=10",
        "sft.trainer.eval_steps=10",
    ]

    def kill() -> None:
        while not list(world.folder.glob("adapters/*.partial/checkpoints/checkpoint-10")):
            time.sleep(0.005)
        server.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        assert world.run("sft", *settings, "tracking.patience_s=1") == 4
        killer.join()
        error = capsys.readouterr().err
        assert "the work is done" in error
        assert "start again with the same settings" in error
        made = products.load(world.product("adapter"))
        assert world.run("sft", *settings) == 4  # at once: nothing is trained while no server answers
        server.start()
        assert world.run("sft", *settings) == 0
        output = capsys.readouterr().out
        assert f"sft: run {made.run_id} is ended, its product was there" in output
        assert f"sft: reused from run {made.run_id}" in output
        assert products.load(world.product("adapter")).run_id == made.run_id
        run = MlflowClient().get_run(made.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["product.digest"] == made.digest
        assert [p.step for p in MlflowClient().get_metric_history(made.run_id, "sft/loss")] == list(range(1, 41))
        artifacts = {a.path for a in MlflowClient().list_artifacts(made.run_id)}
        assert {"config.yaml", "audit", "sft", "manifest.json"} <= artifacts
        assert not list(world.folder.glob("adapters/*.run"))
    finally:
        server.kill()


def test_a_stopped_flow_goes_on_in_its_own_run_with_the_children_it_has(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["tracking.experiment=going-on", "flow=[prepare,sft,evaluate,package,promote]"]
    settings += ["sft.trainer.max_steps=40", "sft.trainer.save_steps=10", "sft.trainer.eval_steps=10"]

    def stop() -> None:
        while not list(world.folder.glob("adapters/*.partial/checkpoints/checkpoint-10")):
            time.sleep(0.005)
        os.kill(os.getpid(), 15)

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    assert world.run("finetune", *settings) == 143
    stopper.join()
    mlflow.set_tracking_uri(world.store)
    before = {stage: [run.info.run_id for run in of_stage(stage)] for stage in ("finetune", "prepare", "sft")}
    assert all(len(ids) == 1 for ids in before.values())
    assert of_stage("finetune")[0].info.status == of_stage("sft")[0].info.status == "KILLED"
    assert world.run("finetune", *settings) == 0
    (flow,) = of_stage("finetune")
    for stage in ("prepare", "sft", "evaluate", "package", "promote"):
        (run,) = of_stage(stage)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == flow.info.run_id
        assert run.info.run_id in before.get(stage, [run.info.run_id])
    assert (flow.info.run_id, flow.info.status) == (before["finetune"][0], "FINISHED")
    assert not list(world.folder.rglob("*.run"))
