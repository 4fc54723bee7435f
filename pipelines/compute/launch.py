"""The parent of a training in several processes: starts them, passes signals on, and tells how they ended."""

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from pipelines.compute import ranks
from pipelines.config.schema import Compute, Config
from pipelines.errors import Refused, Stopped, Unreachable, UserError
from pipelines.product import Product
from pipelines.secrets import masked

TRAINING = ("sft", "grpo", "distill")
NODE_RANKS = ("NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX", "SKYPILOT_NODE_RANK")
RESOLVED, MADE = "resolved.json", "made.json"
PORT = 29500
SECONDS_TO_SAVE = 300  # after a signal, before a process that is still there is killed
GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")  # of gloo and NCCL
TOLD = {error.exit_code: error for error in (UserError, Refused, Unreachable)}


class RankFailed(Exception):
    """A process of a training ended badly; `rank` and `error` go to the run's tags."""

    def __init__(self, rank: int, error: str, traceback: str, place: Path) -> None:
        told = f"rank {rank} failed: {error}\n{traceback}\nwhat the processes said is in {place}"
        super().__init__(masked(told))
        self.rank, self.error = rank, masked(error)


def is_spawned(stage: str, compute: Compute) -> bool:
    """Whether the stage runs in processes of its own: a training in several, or by what needs a group of them."""
    several = compute.num_processes * compute.num_nodes > 1 or compute.strategy != "ddp"
    return stage in TRAINING and several and not ranks.started()


def node_rank(compute: Compute) -> int:
    """This node among all, as configured or as the engine's environment says.

    Raises UserError where there are several and nothing says which.
    """
    if compute.num_nodes == 1:
        return 0
    found: Any = compute.rendezvous.node_rank
    if found is None:
        found = next((os.environ[name] for name in NODE_RANKS if name in os.environ), None)
    if found is None or not str(found).isdecimal() or int(found) >= compute.num_nodes:
        raise UserError(
            f"compute.rendezvous.node_rank: expected 0 to {compute.num_nodes - 1}, here or in {', '.join(NODE_RANKS)}, "
            f"got {found}"
        )
    return int(found)


def run(stage: str, config: Config, inputs: dict[str, Product], work: Path, run_id: str) -> dict[str, Any]:
    """Carries the stage out in its processes; returns what rank 0 says about the product.

    Raises what they ended with: UserError, Refused or Unreachable as the rank told it, Stopped, or RankFailed.
    """
    node = node_rank(config.compute)
    # Each node's own: they begin at different times.
    place = work / ranks.FOLDER / f"node_{node}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    resolved = place / RESOLVED
    given = {
        "stage": stage,
        "config": config.model_dump(),
        "inputs": {name: {**asdict(p), "folder": str(p.folder)} for name, p in inputs.items()},
        "work": str(work),
        "run_id": run_id,
    }
    # The values as they are, for this user's processes alone, and only while they run.
    resolved.touch(mode=0o600)
    resolved.write_text(json.dumps(given, indent=1), encoding="utf-8")
    try:
        _start(config.compute, node, resolved, place)
    finally:
        resolved.unlink()
    if node != 0:
        return {}
    made: dict[str, Any] = json.loads((place / MADE).read_text(encoding="utf-8"))
    shutil.rmtree(work / ranks.FOLDER)
    return made


def clear(work: Path) -> None:
    """Below a launcher of the user's own, what the other ranks left, once all of them are done."""
    if ranks.started():
        ranks.barrier()
        shutil.rmtree(work / ranks.FOLDER, ignore_errors=True)


def _start(compute: Compute, node: int, resolved: Path, place: Path) -> None:
    # Not before a training in several processes: it imports torch.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // compute.num_processes)))
    with _forwarded() as signals:
        try:
            elastic_launch(_settings(compute, node, place), sys.executable)("-m", "pipelines.worker", str(resolved))
        except SignalException:
            raise Stopped(signals[0]) from None
        except ChildFailedError as failed:
            # Not chained: it can't be pickled, which launchers of sweeps need.
            raise _told(failed.failures, place) from None


def _settings(compute: Compute, node: int, place: Path) -> Any:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    wait = compute.rendezvous.timeout_s
    where: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    if compute.num_nodes > 1:
        # The static one: it gives a node the rank that was asked for, so that rank 0 is beside the run's owner.
        where = {"rdzv_backend": "static", "rdzv_endpoint": endpoint(compute), "rdzv_configs": {"rank": node}}
        where["rdzv_configs"]["timeout"] = wait
    main = {0} if node == 0 else set()
    return LaunchConfig(
        min_nodes=compute.num_nodes,
        max_nodes=compute.num_nodes,
        nproc_per_node=compute.num_processes,
        run_id="tunesmith",
        max_restarts=0,
        # Rank 0 writes to the terminal itself, the others into files.
        logs_specs=DefaultLogsSpecs(
            log_dir=str(place), redirects={n: Std.ALL for n in range(compute.num_processes) if n not in main}
        ),
        # Those that end a run are passed on by `_forwarded`, once: a second one would leave the processes alone.
        signals_to_handle="SIGQUIT",
        shutdown_timeout=min(wait, SECONDS_TO_SAVE),
        **where,
    )


def endpoint(compute: Compute) -> str:
    """Where the nodes meet. Raises UserError where nothing says it."""
    if compute.rendezvous.endpoint is not None:
        return compute.rendezvous.endpoint
    if "MASTER_ADDR" not in os.environ:
        raise UserError("compute.rendezvous.endpoint: expected host:port of node 0, here or in MASTER_ADDR, got none")
    return f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', PORT)}"


@contextlib.contextmanager
def _forwarded() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C reach the processes as one SIGTERM, after which they save and end."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    seen: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        if len(seen) == 1:
            raise SignalException("stopped", signal.SIGTERM)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _told(failures: dict[int, Any], place: Path) -> BaseException:
    """What the first process that failed ended with; the others' errors are of its absence."""
    rank = _first(failures)
    first = failures[rank]
    told, trace = _error_of(first)
    if first.exitcode in TOLD and told:
        return TOLD[first.exitcode](told.partition(": ")[2] or told)
    if first.exitcode in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return Stopped(first.exitcode - 128)
    silent = [str(number) for number, other in failures.items() if number != rank and not _error_of(other)[0]]
    waited = f"; it waited for rank {', '.join(silent)}" if silent and "imed out" in told else ""
    return RankFailed(rank, (told or str(first.message)) + waited, trace, place)


def _first(failures: dict[int, Any]) -> int:
    """The rank that failed first. One that was killed leaves no word of it but in what the others miss."""
    told = sorted((f.error_file_data["at"], rank) for rank, f in failures.items() if "at" in f.error_file_data)
    killed = [rank for rank, f in failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
    if told and not (killed and any(word in _error_of(failures[told[0][1]])[0] for word in GONE)):
        return int(told[0][1])
    return killed[0] if killed else min(failures)


def _error_of(failure: Any) -> tuple[str, str]:
    held = failure.error_file_data.get("message")
    if not isinstance(held, dict):
        return "", ""
    return str(held["message"]), str(held["extraInfo"]["py_callstack"])
