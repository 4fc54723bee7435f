"""Twenty runs that log at once through one MLflow server. `python -m benchmarks.postgres [postgres] [sqlite]`

Each run is a process that logs as a stage does, through its spool: points of a curve at every step, parameters, tags,
artifacts. Afterwards the server is asked for everything. Prints a table and, as its last line, one JSON object.
PostgreSQL is `server/start.sh` with users and passwords; SQLite a plain `mlflow server`, for comparison.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.postgres_server import Postgres, Team, free_port
from pipelines.config.paths import PROJECT

RUNS, STEPS, METRICS, PARAMS, TAGS, FILES = 20, 200, 5, 100, 10, 3
STEP_S = 0.02  # what a step of the training itself would take at least
EXPERIMENT = "twenty"


@dataclass(frozen=True)
class Store:
    """A server that runs: its address with what a client needs, and what the table calls it."""

    name: str
    login: Mapping[str, str]


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Store]:
    """server/start.sh on PostgreSQL, two workers; the runs log as a user of their own."""
    with Postgres(folder / "postgres") as database, Team(folder, database) as team:
        team.allow("trainer", "password of the trainer", f"experiment:{EXPERIMENT}")
        yield Store("PostgreSQL, users", team.login("trainer", "password of the trainer"))


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[Store]:
    """A plain server on SQLite, two workers."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", f"{folder}/artifacts", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "mlflow.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--workers", "2"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(900):
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{address}/health"):
                break
            time.sleep(0.2)
        yield Store("SQLite, no users", {"MLFLOW_TRACKING_URI": address})
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


STORES = {"postgres": postgres, "sqlite": sqlite}


def log_as_a_stage(number: int, folder: Path, go: Path) -> None:
    """One run: waits for the sign, logs, and writes down what it saw."""
    from pipelines.config.schema import Tracking
    from pipelines.tracking.kept import Kept
    from pipelines.tracking.run import started
    from pipelines.tracking.store import open_store

    open_store(Tracking(uri=None, experiment=EXPERIMENT, system_metrics=False, patience_s=300))
    (folder / f"ready_{number}").touch()
    while not go.exists():
        time.sleep(0.01)
    calls: list[float] = []
    begun = time.monotonic()
    with started(f"run {number}", {"number": str(number)}, Kept(folder / f"adapter_{number}", 300)) as run:
        opened = time.monotonic() - begun
        run.params({f"p{n}": f"{number}.{n}" for n in range(PARAMS)})
        run.tags({f"t{n}": f"{number}.{n}" for n in range(TAGS)})
        for step in range(1, STEPS + 1):
            time.sleep(STEP_S)
            before = time.perf_counter()
            run.metrics({f"m{n}": number + step / 7 + n for n in range(METRICS)}, step)
            calls.append(time.perf_counter() - before)
        for n in range(FILES):
            run.data(f"{number}.{n} " * 1000, f"files/{n}.txt")
        logged = time.monotonic() - begun
    seen = {"run": run.id, "opened_s": opened, "logged_s": logged, "ended_s": time.monotonic() - begun, "calls": calls}
    (folder / f"seen_{number}.json").write_text(json.dumps(seen), encoding="utf-8")


def measure(name: str, temporary: Path) -> dict[str, Any]:
    """The figures of one store. Raises RuntimeError where a process fails."""
    folder, go = temporary / name, temporary / name / "go"
    folder.mkdir()
    with STORES[name](folder) as store:
        _make_experiment(store)
        command = [sys.executable, "-m", "benchmarks.postgres", "--run", str(folder)]
        environment = {**os.environ, **store.login, "OMP_NUM_THREADS": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
        logs = [(folder / f"run_{number}.log").open("wb") for number in range(RUNS)]
        processes = [
            subprocess.Popen([*command, str(number)], env=environment, stdout=log, stderr=log, cwd=PROJECT)
            for number, log in enumerate(logs)
        ]
        while len(list(folder.glob("ready_*"))) < RUNS:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.1)
        print(f"{store.name}: {RUNS} runs log", file=sys.stderr, flush=True)
        begun = time.monotonic()
        go.touch()
        codes = [process.wait() for process in processes]
        wall = time.monotonic() - begun
        said = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("run_*.log"))]
        if any(codes):
            raise RuntimeError("".join(said)[-4000:])
        seen = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("seen_*.json"))]
        lost = sum(_lost(store, one) for one in seen)
    return {"store": store.name, "lost": lost, "waits_told": sum("waiting" in text for text in said)} | _figures(
        seen, wall
    )


def _make_experiment(store: Store) -> None:
    from mlflow import MlflowClient

    os.environ |= store.login
    client = MlflowClient(store.login["MLFLOW_TRACKING_URI"])
    if client.get_experiment_by_name(EXPERIMENT) is None:
        client.create_experiment(EXPERIMENT)


def _figures(seen: list[dict[str, Any]], wall: float) -> dict[str, Any]:
    calls = sorted(call for one in seen for call in one["calls"])
    points = RUNS * STEPS * METRICS
    return {
        "runs": len(seen),
        "points": points,
        "wall_s": round(wall, 1),
        "points_per_s": round(points / wall),
        "call_p95_ms": round(1000 * calls[int(0.95 * len(calls))], 2),
        "call_max_ms": round(1000 * calls[-1], 1),
        "last_point_to_end_s": round(max(one["ended_s"] - one["logged_s"] for one in seen), 1),
    }


def _lost(store: Store, seen: Mapping[str, Any]) -> int:
    """Points, parameters, tags and artifacts of a run that the server hasn't, or has twice or otherwise."""
    from mlflow import MlflowClient

    client = MlflowClient(store.login["MLFLOW_TRACKING_URI"])
    run = client.get_run(seen["run"])
    number = int(run.data.tags["number"])
    wrong = int(run.info.status != "FINISHED")
    for n in range(METRICS):
        history = [(point.step, point.value) for point in client.get_metric_history(seen["run"], f"m{n}")]
        wanted = [(step, number + step / 7 + n) for step in range(1, STEPS + 1)]
        wrong += len(set(history) ^ set(wanted)) + len(history) - len(set(history))
    wrong += sum(run.data.params.get(f"cfg.p{n}") != f"{number}.{n}" for n in range(PARAMS))
    wrong += sum(run.data.tags.get(f"t{n}") != f"{number}.{n}" for n in range(TAGS))
    there = {item.path: item.file_size for item in client.list_artifacts(seen["run"], "files")}
    return wrong + sum(there.get(f"files/{n}.txt") != len(f"{number}.{n} " * 1000) for n in range(FILES))


def main(names: list[str]) -> None:
    """Measures the named stores, both without a name."""
    if unknown := [name for name in names if name not in STORES]:
        sys.exit(f"no store {unknown[0]!r}; there are {', '.join(STORES)}")
    figures = {}
    for name in names or STORES:
        with tempfile.TemporaryDirectory(prefix="tunesmith-", ignore_cleanup_errors=True) as temporary:
            Path(temporary).chmod(0o755)
            figures[name] = measure(name, Path(temporary))
    columns = list(next(iter(figures.values())))
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in figures.values():
        print(
            "| " + " | ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()) + " |"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        log_as_a_stage(int(sys.argv[3]), Path(sys.argv[2]), Path(sys.argv[2]) / "go")
    else:
        main(sys.argv[1:])
