"""How runs end: crashed, stopped, refused, orphaned; and stores that don't answer."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient

from pipelines.config.paths import PROJECT
from pipelines.config.schema import Tracking
from pipelines.errors import Refused, Stopped, Unreachable, UserError
from pipelines.tracking.run import end_orphans, flatten, started
from pipelines.tracking.store import open_store
from tests.conftest import World


@pytest.fixture
def opened(store: str) -> str:
    open_store(Tracking(uri=store, experiment="tunesmith", system_metrics=False, patience_s=0))
    return store


def ended(error: BaseException | None) -> mlflow.entities.Run:
    """A run that ended with that error."""
    expected = pytest.raises(type(error)) if error else nullcontext()
    with expected, started("probe", {"stage": "probe"}) as run:
        if error:
            raise error
    return MlflowClient().get_run(run.id)


@pytest.mark.parametrize(
    ("error", "status", "tags"),
    [
        (None, "FINISHED", {}),
        (ValueError("no such luck"), "FAILED", {"error": "ValueError: no such luck"}),
        (UserError("f.csv:3: empty"), "FAILED", {"error": "pipelines.errors.UserError: f.csv:3: empty"}),
        (Stopped(signal.SIGTERM), "KILLED", {}),
        (KeyboardInterrupt(), "FAILED", {"error": "KeyboardInterrupt"}),
        (Refused("gate says no"), "FINISHED", {"refused": "gate says no"}),
    ],
)
def test_status_says_what_happened(opened: str, error: BaseException | None, status: str, tags: dict[str, str]) -> None:
    run = ended(error)
    assert run.info.status == status
    assert {name: run.data.tags.get(name) for name in tags} == tags


def test_a_failing_child_fails_its_parent(opened: str) -> None:
    with pytest.raises(ValueError, match="inner"), started("outer", {}) as outer, started("inner", {}) as inner:
        raise ValueError("inner")
    assert MlflowClient().get_run(outer.id).info.status == "FAILED"
    assert MlflowClient().get_run(inner.id).data.tags["mlflow.parentRunId"] == outer.id


def test_a_run_of_a_dead_process_is_ended_and_a_living_one_left(opened: str) -> None:
    script = (
        "import os; from pipelines.tracking.run import started; from pipelines.tracking.store import open_store\n"
        "from pipelines.config.schema import Tracking\n"
        f"open_store(Tracking(uri={opened!r}, experiment='tunesmith', system_metrics=False, patience_s=0))\n"
        "with started('doomed', {}) as run: print(run.id, flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    dead = done.stdout.strip()
    assert MlflowClient().get_run(dead).info.status == "RUNNING"
    with started("living", {}) as living:
        assert end_orphans() == [dead]
        assert MlflowClient().get_run(living.id).info.status == "RUNNING"
    assert MlflowClient().get_run(dead).info.status == "KILLED"


def test_a_metric_may_have_a_name_of_the_users_own(world: World) -> None:
    open_store(Tracking(uri=world.store, experiment="names", system_metrics=False, patience_s=0))
    with started("named", {}) as run:
        run.metrics({"contamination/my, 'own' set+/8gram": 3.0, "rows/train": 1.0})
    assert MlflowClient().get_run(run.id).data.metrics == {"contamination/my_ _own_ set_/8gram": 3.0, "rows/train": 1.0}


def test_flatten_names_every_leaf() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [1, 2], "e": {}}


def test_an_absent_server_is_said_plainly(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unreachable, match="no MLflow server answers at http://127"):
        open_store(Tracking(uri="http://127.0.0.1:9", experiment="e", system_metrics=False, patience_s=0))
    assert world.run("prepare", "tracking.uri=http://127.0.0.1:9") == 4
    assert capsys.readouterr().err.startswith("tunesmith: tracking.uri: no MLflow server answers")
    assert not [path for path in world.folder.rglob("*") if path.is_file()]


def test_a_store_that_cannot_be_written_is_said_plainly(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.folder / "file").write_text("")
    assert world.run("prepare", f"tracking.uri=sqlite:///{world.folder}/file/mlflow.db") == 2
    assert "tracking.uri: can't open" in capsys.readouterr().err


def start(world: World, *overrides: str) -> "subprocess.Popen[str]":
    """The sft stage in a process of its own, with a run long enough to be stopped."""
    words = ["sft", *world.overrides(), *LONG, *overrides]
    command = [sys.executable, "-m", "pipelines", *words]
    # As many threads as this process has: another number adds up in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )


LONG = [
    "sft.trainer.max_steps=60",
    "sft.trainer.eval_steps=20",
    "sft.trainer.save_steps=20",
    "sft.early_stopping_patience=null",
]


@pytest.fixture(scope="module")
def uninterrupted(finished: World, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of the long run when nothing stops it."""
    world = World(tmp_path_factory.mktemp("whole"), finished.store, finished.model, finished.rows)
    rows = f"sft.rows={finished.product('rows')}"
    assert world.run("sft", *LONG, rows) == 0
    return (world.product("adapter") / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_where_it_stopped(
    finished: World,
    world: World,
    uninterrupted: bytes,
    signum: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped in mid-training: KILLED with a checkpoint; started again: the very same adapter, in the same run.

    Meanwhile another start is refused.
    """
    rows = f"sft.rows={finished.product('rows')}"
    process = start(world, rows)
    _wait_for_step(world, process)
    assert world.run("sft", *LONG, rows) == 2
    assert f"another start is at work on it: process {process.pid} on" in capsys.readouterr().err
    process.send_signal(signum)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum), output
    checkpoints = list(world.folder.glob("adapters/*.partial/checkpoints/checkpoint-*"))
    assert checkpoints
    assert not list(world.folder.glob("adapters/*/manifest.json"))
    run_id = _last_run(world)
    if signum != signal.SIGKILL:
        assert MlflowClient().get_run(run_id).info.status == "KILLED"
    assert world.run("sft", *LONG, rows) == 0
    assert f"sft: goes on in run {run_id}" in capsys.readouterr().out
    run = MlflowClient().get_run(run_id)
    assert (run.info.status, run.data.tags["resumed"]) == ("FINISHED", "1")
    assert run.data.tags["owner.pid"] == str(os.getpid())
    assert not {"error", "stopped"} & run.data.tags.keys()
    assert [p.step for p in MlflowClient().get_metric_history(run_id, "sft/loss")] == list(range(1, 61))
    assert not list(world.folder.glob("adapters/*.run"))
    assert (world.product("adapter") / "adapter_model.safetensors").read_bytes() == uninterrupted


def _wait_for_step(world: World, process: "subprocess.Popen[str]") -> None:
    """Until the first checkpoint is whole."""
    deadline = time.monotonic() + 120
    while not list(world.folder.glob("adapters/*.partial/checkpoints/checkpoint-20/trainer_state.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _last_run(world: World) -> str:
    mlflow.set_tracking_uri(world.store)
    experiment = MlflowClient().get_experiment_by_name("tunesmith").experiment_id
    found = MlflowClient().search_runs(
        [experiment], "tags.stage = 'sft'", order_by=["attributes.start_time DESC"], max_results=1
    )
    return str(found[0].info.run_id)
