"""The real launcher: processes started by the parent, and every way in which they can end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.config.paths import PROJECT
from tests.compute.forked import free_port
from tests.compute.test_strategies import NEAR, furthest, sft
from tests.conftest import World

# What a worker runs before anything of ours, through PYTHONPATH: rank 1 does as FAULT says once a step has begun.
FAULTY = """
import os, signal, sys, time
fault = os.environ.get("FAULT")
if fault and os.environ.get("RANK") == "1":
    import importlib.abc, importlib.machinery
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "pipelines.policy.fit":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module
            def exec_module(module):
                load(module)
                end = module._Watch.on_step_end
                def on_step_end(self, args, state, control, **given):
                    if state.global_step == 2:
                        if fault == "raise":
                            raise KeyError("rank 1 has had enough")
                        if fault == "user":
                            from pipelines.errors import UserError
                            raise UserError("sft.trainer: rank 1 minds")
                        if fault == "kill":
                            os.kill(os.getpid(), signal.SIGKILL)
                        if fault == "hang":
                            time.sleep(600)
                    return end(self, args, state, control, **given)
                module._Watch.on_step_end = on_step_end
            spec.loader.exec_module = exec_module
            return spec
    import importlib.util
    sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    folder = tmp_path / "faulty"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FAULTY, encoding="utf-8")
    return folder


def start(world: World, folder: Path, faulty: Path, fault: str, *further: str) -> subprocess.Popen[str]:
    overrides = [word for word in sft(world, "ddp", 2, *further) if not word.startswith("paths.adapters=")]
    words = [sys.executable, "-m", "pipelines", "sft", *overrides, f"paths.adapters={folder / 'adapters'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAULT": fault}
    if fault:
        environment["PYTHONPATH"] = os.pathsep.join((str(faulty), str(PROJECT)))
    return subprocess.Popen(
        words, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def last_run(world: World) -> Any:
    import mlflow

    client = mlflow.MlflowClient(world.store)
    experiment = client.get_experiment_by_name("tunesmith")
    (found,) = client.search_runs([experiment.experiment_id], max_results=1)
    return found


def test_one_product_in_one_run_as_of_one_process(prepared: World, tmp_path: Path, faulty: Path) -> None:
    process = start(prepared, tmp_path, faulty, "")
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, said + errors
    assert said.count("sft: started") == 1
    assert said.count("parameters to train") == 1
    (made,) = (tmp_path / "adapters").glob("*/manifest.json")
    manifest = json.loads(made.read_text())
    assert not [name for name in manifest["files"] if name.startswith(("ranks", "checkpoints"))]
    run = last_run(prepared)
    assert (run.info.status, run.info.run_id) == ("FINISHED", manifest["made_by"]["run_id"])
    assert run.data.metrics["sft/steps"] == 6
    assert [found.dataset.name for found in run.inputs.dataset_inputs] == ["my_routing", "my_routing"]
    alone = World(tmp_path / "alone", prepared.store, prepared.model, prepared.rows)
    assert alone.run("sft", *[word for word in sft(prepared, "ddp", 1) if word.startswith(("sft.", "compute."))]) == 0
    assert furthest(made.parent, alone.product("adapter")) < NEAR


@pytest.mark.slow
def test_the_rank_that_raised_is_named(prepared: World, tmp_path: Path, faulty: Path) -> None:
    process = start(prepared, tmp_path, faulty, "raise")
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 1, said + errors
    assert "rank 1 failed: KeyError: 'rank 1 has had enough'" in errors
    assert "on_step_end" in errors
    run = last_run(prepared)
    assert run.info.status == "FAILED"
    assert run.data.tags["failed_rank"] == "1"
    assert "rank 1 has had enough" in run.data.tags["failed_error"]


@pytest.mark.slow
def test_a_mistake_that_a_rank_finds_is_told_once(prepared: World, tmp_path: Path, faulty: Path) -> None:
    process = start(prepared, tmp_path, faulty, "user")
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 2, said + errors
    assert errors.strip().splitlines()[-1] == "tunesmith: sft.trainer: rank 1 minds"
    assert errors.count("rank 1 minds") == 1


@pytest.mark.slow
def test_a_killed_rank_ends_the_run(prepared: World, tmp_path: Path, faulty: Path) -> None:
    process = start(prepared, tmp_path, faulty, "kill")
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 1, said + errors
    assert "rank 1 failed: Signal 9" in errors
    assert last_run(prepared).data.tags["failed_rank"] == "1"


@pytest.mark.slow
def test_a_hanging_rank_ends_the_run(prepared: World, tmp_path: Path, faulty: Path) -> None:
    process = start(prepared, tmp_path, faulty, "hang", "compute.rendezvous.timeout_s=30")
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 1, said + errors
    assert "imed out" in errors, errors
    assert "it waited for rank 1" in errors
    assert last_run(prepared).info.status == "FAILED"


@pytest.mark.slow
def test_a_signal_reaches_the_ranks_which_save_and_end(prepared: World, tmp_path: Path, faulty: Path) -> None:
    """The next start goes on from where they stopped."""
    long = ["sft.trainer.max_steps=4000", "sft.trainer.eval_strategy=no", "sft.trainer.save_steps=1000"]
    long += ["sft.early_stopping_patience=null", "sft.trainer.load_best_model_at_end=false"]
    process = start(prepared, tmp_path, faulty, "", *long)
    children = psutil.Process(process.pid)
    metrics: dict[str, float] = {}
    deadline = time.monotonic() + 200
    while "sft/loss" not in metrics and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
        run = last_run(prepared)
        metrics = run.data.metrics if run.info.status == "RUNNING" else {}
    ranks = children.children(recursive=True)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 143, said + errors
    assert last_run(prepared).info.status == "KILLED"
    assert not [rank for rank in ranks if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
    assert len(list((tmp_path / "adapters").glob("*.partial/checkpoints/checkpoint-*"))) == 1


def node(world: World, folder: Path, number: int, address: str, before: list[str]) -> subprocess.Popen[str]:
    """The same command as on every node; `before` is what puts it into a network of its own."""
    kept = [
        word for word in sft(world, "zero2", 1) if not word.startswith(("paths.adapters=", "sft.trainer.per_device"))
    ]
    words = [*before, sys.executable, "-m", "pipelines", "sft", *kept, f"paths.adapters={folder / 'adapters'}"]
    words += [
        "compute.num_nodes=2",
        f"compute.rendezvous.endpoint={address}",
        "sft.trainer.per_device_train_batch_size=4",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NODE_RANK": str(number)}
    if before:
        environment["GLOO_SOCKET_IFNAME"] = f"v{number}"
    return subprocess.Popen(
        words, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def check_two_nodes(world: World, folder: Path, address: str, befores: list[list[str]]) -> None:
    nodes = [node(world, folder, number, address, before) for number, before in enumerate(befores)]
    ends = [process.communicate(timeout=400) for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], ends
    (made,) = (folder / "adapters").glob("*/manifest.json")
    assert last_run(world).info.status == "FINISHED"
    assert json.loads(made.read_text())["made_by"]["run_id"] == last_run(world).info.run_id


@pytest.mark.slow
def test_two_nodes_meet_on_one_machine(prepared: World, tmp_path: Path) -> None:
    check_two_nodes(prepared, tmp_path, f"127.0.0.1:{free_port()}", [[], []])


@pytest.fixture
def networks() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable: 10.77.0.1 and 10.77.0.2."""
    names = [f"tune{os.getpid()}{side}" for side in "ab"]
    cable = " ; ".join(
        [
            "set -e",
            *(f"ip netns add {name}" for name in names),
            f"ip -n {names[0]} link add v0 type veth peer name v1 netns {names[1]}",
            *(f"ip -n {name} addr add 10.77.0.{n + 1}/24 dev v{n}" for n, name in enumerate(names)),
            *(f"ip -n {name} link set lo up" for name in names),
            *(f"ip -n {name} link set v{n} up" for n, name in enumerate(names)),
        ]
    )
    laid = subprocess.run(["bash", "-c", cable], capture_output=True, text=True)
    try:
        if laid.returncode:
            pytest.skip(f"no network namespaces here: {laid.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_two_nodes_meet_over_a_network(prepared: World, tmp_path: Path, networks: list[str]) -> None:
    befores = [["ip", "netns", "exec", name] for name in networks]
    check_two_nodes(prepared, tmp_path, "10.77.0.1:29533", befores)


@pytest.mark.slow
def test_torchrun_starts_the_same_worker(prepared: World, tmp_path: Path) -> None:
    """By hand: what `--cfg job` printed, and torchrun in the parent's place."""
    overrides = [*sft(prepared, "zero1", 2), f"paths.adapters={tmp_path / 'adapters'}"]
    shown = subprocess.run(
        [sys.executable, "-m", "pipelines", "sft", *overrides, "--cfg", "job"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
    )
    (tmp_path / "job.yaml").write_bytes(shown.stdout)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    worker = ["-m", "pipelines.worker", "sft", str(tmp_path / "job.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    wrong = subprocess.run([*torchrun, "1", *worker], cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert "the launcher started 1 in all" in wrong.stderr
    subprocess.run([*torchrun, "2", *worker], cwd=PROJECT, env=environment, check=True, timeout=400)
    (made,) = (tmp_path / "adapters").glob("*/manifest.json")
    assert last_run(prepared).info.run_id == json.loads(made.read_text())["made_by"]["run_id"]
    assert not (made.parent / "ranks").exists()
