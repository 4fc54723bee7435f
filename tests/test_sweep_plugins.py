"""Sweeps by Hydra's plugins: real launchers and Optuna, real stores."""

import json
import subprocess
import threading
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.config.paths import PROJECT
from pipelines.config.sweep import uses_plugins
from pipelines.errors import UserError
from pipelines.sweeping import told
from pipelines.tracking.run import Run
from tests.conftest import World


def swept(tmp_path: Path, *words: str) -> list[str]:
    """Overrides of the finished jobs, all of them below one run."""
    command = [str(PROJECT / ".venv/bin/python"), "-m", "pipelines", "prepare", "-m", f"tracking.uri={uri(tmp_path)}"]
    command += [f"paths.rows={tmp_path}/rows", f"hydra.sweep.dir={tmp_path}/sweep", *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(uri(tmp_path))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [run for run in runs if run.data.tags["stage"] == "sweep"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    found = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return sorted(run.data.tags["overrides"] for run in found if run.data.tags["stage"] == "job")


def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/m.db"


@pytest.mark.slow
def test_optuna_chooses_and_joblib_runs_jobs_side_by_side(tmp_path: Path) -> None:
    by = ["hydra/launcher=joblib", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"]
    by += ["hydra.sweeper.sampler.seed=3"]  # two jobs of one seed would be the same one
    jobs = swept(tmp_path, *by, "hydra.sweeper.direction=maximize", "seed=range(1,9)", "sweep_metric=rows/train")
    assert len(jobs) == 2
    results = (tmp_path / "sweep/optimization_results.yaml").read_text()
    rows = {sum(1 for _ in path.open()) for path in (tmp_path / "rows").glob("*/train.jsonl")}
    assert f"best_value: {max(rows)}.0" in results


@pytest.mark.slow
def test_submitit_runs_jobs(tmp_path: Path) -> None:
    jobs = swept(tmp_path, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "seed=1,2")
    assert [overrides.split()[-1] for overrides in jobs] == ["seed=1", "seed=2"]
    assert len(list((tmp_path / "rows").iterdir())) == 2


@pytest.mark.slow
def test_submitit_starts_one_job_on_two_nodes(world: World, finished: World) -> None:
    """What Slurm would start on two machines: each task finds its place and the first node's address."""
    command = [str(PROJECT / ".venv/bin/python"), "-m", "pipelines", "sft", "-m", "hydra/launcher=submitit_local"]
    command += ["hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=5", "compute.num_nodes=2"]
    command += [f"hydra.sweep.dir={world.folder}/sweep", f"sft.rows={finished.product('rows')}", *world.overrides()]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((world.product("adapter") / "manifest.json").read_text())
    run = MlflowClient(world.store).get_run(manifest["made_by"]["run_id"])
    assert run.info.status == "FINISHED"
    assert "cfg.compute.num_nodes" in run.data.params
    logs = [path.read_text() for path in (world.folder / "sweep").rglob("*_log.out")]
    assert sorted("sft: done" in log for log in logs) == [False, True]


def test_a_metric_that_no_job_has(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(uri(tmp_path))
    with mlflow.start_run() as job:
        with mlflow.start_run(nested=True):
            mlflow.log_metric("loss", 2.0)
        assert told(job.info.run_id, "loss") == 2.0
        with pytest.raises(UserError, match="sweep_metric: the job has no metric accuracy"):
            told(job.info.run_id, "accuracy")


def test_runs_that_name_one_data_set_at_one_moment(tmp_path: Path) -> None:
    """MLflow looks for a data set, then inserts it; between the two another run may have."""
    mlflow.set_tracking_uri(uri(tmp_path))
    runs = [Run(MlflowClient().create_run("0").info.run_id) for _ in range(8)]
    failed: list[Exception] = []
    together = threading.Barrier(len(runs))

    def name_it(run: Run, digest: str) -> None:
        together.wait()
        try:
            run.input("rows", tmp_path, digest, "train")
        except mlflow.exceptions.MlflowException as error:
            failed.append(error)

    for digest in "abcd":
        threads = [threading.Thread(target=name_it, args=(run, digest)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert {len(MlflowClient().get_run(run.id).inputs.dataset_inputs) for run in runs} == {4}


def test_plugins_are_known_by_their_group() -> None:
    assert uses_plugins(["seed=1,2", "hydra/launcher=joblib"])
    assert not uses_plugins(["seed=1,2", "paths.rows=hydra/launcher"])
