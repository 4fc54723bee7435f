"""The ways in from outside: `mlflow run`, a tracking server, the scoring server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.config.paths import PROJECT
from pipelines.evaluation import record as table
from pipelines.tracking.install import environment_link
from pipelines.tracking.run import end_orphans
from tests.conftest import World

BIN = Path(sys.executable).parent


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """No pyenv on PATH, environments below `folder`."""
    path = os.pathsep.join([str(BIN), "/usr/bin", "/bin"])
    return {**os.environ, "PATH": path, "MLFLOW_ENV_ROOT": str(folder / "envs"), "OMP_NUM_THREADS": "1", **extra}


def link_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make setup` does, below `folder`."""
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(folder / "envs"))
    link = environment_link()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(sys.prefix, target_is_directory=True)


def test_plain_mlflow_run_carries_overrides_without_pyenv(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's quoting: spaces, lists, a new key; typed parameters; one run, nothing executed."""
    link_environment(tmp_path, monkeypatch)
    extra = (
        "{path:data/banking77/test.csv,format:csv,split:validation,prompt:text,answer:category,constant_answer:null,"
        "parts:null,exclude:[card_arrival,exchange_rate],limit:5,license:CC-BY-4.0}"
    )
    overrides = [
        *world.overrides(),
        "'task.instruction=\"Name the intent; $(touch pwned) `touch pwned`\"'",
        f"+task.sources.more={extra}",
    ]
    command = ["mlflow", "run", ".", "-e", "prepare", "-P", f"overrides={' '.join(overrides)}", "-P", "seed=7"]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=environment(tmp_path, MLFLOW_TRACKING_URI=world.store, MLFLOW_EXPERIMENT_NAME="outside"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (world.product("rows") / "validation.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"][0]["content"] == "Name the intent; $(touch pwned) `touch pwned`"
    assert sum("banking77/test.csv" in row["source"] for row in rows) == 5
    assert not (PROJECT / "pwned").exists()
    mlflow.set_tracking_uri(world.store)
    experiment = MlflowClient().get_experiment_by_name("outside").experiment_id
    (run,) = MlflowClient().search_runs([experiment])
    assert (run.info.status, run.data.tags["stage"]) == ("FINISHED", "prepare")
    assert run.data.params["cfg.seed"] == "7"


def test_mlflow_run_fails_with_our_message(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    link_environment(tmp_path, monkeypatch)
    command = ["mlflow", "run", ".", "-e", "sft", "-P", "overrides=sft.trainer.learning_rat=1"]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=environment(tmp_path, MLFLOW_TRACKING_URI=world.store, MLFLOW_EXPERIMENT_NAME="failing"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "sft.trainer.learning_rat: unknown key; nearest valid name: learning_rate" in done.stderr
    mlflow.set_tracking_uri(world.store)
    experiment = MlflowClient().get_experiment_by_name("failing").experiment_id
    assert [run.info.status for run in MlflowClient().search_runs([experiment])] == ["FAILED"]


def test_ctrl_c_on_mlflow_run_ends_killed_with_a_checkpoint(
    tmp_path: Path, world: World, finished: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches the whole group, `mlflow run` sends a SIGTERM after it and calls the run FAILED.

    The next start of ours puts that right.
    """
    link_environment(tmp_path, monkeypatch)
    overrides = [*world.overrides(), f"sft.rows={finished.product('rows')}", "sft.trainer.max_steps=2000"]
    process = subprocess.Popen(
        ["mlflow", "run", ".", "-e", "sft", "-P", f"overrides={' '.join(overrides)}"],
        cwd=PROJECT,
        env=environment(tmp_path, MLFLOW_TRACKING_URI=world.store, MLFLOW_EXPERIMENT_NAME="interrupted"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 150
    mlflow.set_tracking_uri(world.store)
    while not _steps_logged("interrupted"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    (run,) = _runs("interrupted")
    assert run.data.tags["stopped"] == "stopped by signal 2", output
    end_orphans()
    (run,) = _runs("interrupted")
    assert run.info.status == "KILLED", output
    assert list(world.folder.glob("adapters/*.partial/checkpoints/checkpoint-*/trainer_state.json"))


def _runs(experiment: str) -> list[mlflow.entities.Run]:
    found = MlflowClient().get_experiment_by_name(experiment)
    return list(MlflowClient().search_runs([found.experiment_id])) if found else []


def _steps_logged(experiment: str) -> bool:
    return any("sft/loss" in run.data.metrics for run in _runs(experiment))


@contextmanager
def served(command: list[str], url: str, extra: dict[str, str], log: Path) -> Iterator[None]:
    """A server process for the block, once it answers at `url`."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment(log.parent, **extra), stdout=stream, stderr=stream
        )
        try:
            deadline = time.monotonic() + 150
            while not _answers(url):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_scoring_server_answers_as_it_was_evaluated(finished: World, tmp_path: Path) -> None:
    port = free_port()
    uri = f"models:/{finished.folder.name}@staging"
    command = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port), "-h", "127.0.0.1"]
    record = table.of(table.read(finished.product("scores") / "answers.parquet")[0], table.HELDOUT, "adapter")[0]
    address = f"http://127.0.0.1:{port}"
    with served(command, f"{address}/ping", {"MLFLOW_TRACKING_URI": finished.store}, tmp_path / "serve.log"):
        body = json.dumps({"messages": json.loads(record.prompt)}).encode()
        request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            reply = json.loads(response.read())
    assert reply["choices"][0]["message"]["content"] == record.answer
    assert reply["choices"][0]["finish_reason"] in ("stop", "length")


def test_tracking_uri_switches_to_a_server(world: World, tmp_path: Path) -> None:
    """The flow against an MLflow server: runs, artifacts, registry and alias live there."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--port", str(port)]
    command += ["--artifacts-destination", f"{tmp_path}/artifacts", "--workers", "1", "--host", "127.0.0.1"]
    extra = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with served(command, f"{address}/health", extra, tmp_path / "server.log"):
        assert world.run("finetune", f"tracking.uri={address}") == 0
        mlflow.set_tracking_uri(address)
        version = MlflowClient().get_model_version_by_alias(world.folder.name, "staging")
        assert version.tags["gate.result"] == "promoted to staging"
        reply = mlflow.pyfunc.load_model(f"models:/{world.folder.name}@staging").predict(
            {"messages": [{"role": "user", "content": "Where is my card?"}]}
        )
        assert reply["object"] == "chat.completion"
