"""A run as a stage sees it: log, save, input, child."""

import contextlib
import json
import math
import os
import re
import socket
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, RunStatus
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

from pipelines.errors import Refused, Stopped
from pipelines.tracking.source import source_tags

TAG_LIMIT = 8000
UNFIT = re.compile(r"[^\w\-. :/]")  # what MLflow refuses in a metric's name, and a user's own name may hold
DIGEST_LIMIT = 36  # MLflow's column; the whole digest goes into a tag of the input


@dataclass(frozen=True)
class Run:
    """An open MLflow run."""

    id: str

    def params(self, values: Mapping[str, Any]) -> None:
        """Flattened configuration; `mlflow run` owns the bare names, so ours start with `cfg.`."""
        mlflow.log_params({f"cfg.{name}": value for name, value in values.items()}, run_id=self.id)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now = get_current_time_millis()
        found = [Metric(name, value, now, step) for name, value in fit(values).items()]
        MlflowClient().log_batch(self.id, metrics=found)

    def tags(self, values: Mapping[str, object]) -> None:
        mlflow.MlflowClient().log_batch(self.id, tags=[_tag(name, value) for name, value in values.items()])

    def file(self, path: Path, folder: str | None = None) -> None:
        MlflowClient().log_artifact(self.id, str(path), folder)

    def data(self, content: bytes | str, name: str) -> None:
        """Bytes or text as an artifact of that name, which may hold folders."""
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / Path(name).name
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            folder = Path(name).parent.as_posix()
            self.file(path, None if folder == "." else folder)

    def table(self, records: Sequence[Mapping[str, Any]], name: str) -> None:
        """Records as a table that the MLflow UI shows."""
        columns = list(records[0]) if records else []
        rows = [[record[column] for column in columns] for record in records]
        self.data(json.dumps({"columns": columns, "data": rows}, ensure_ascii=False), name)
        entry = {"path": name, "type": "table"}
        logged = json.loads(MlflowClient().get_run(self.id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        self.tags({"mlflow.loggedArtifacts": json.dumps([*(e for e in logged if e != entry), entry])})

    def input(self, name: str, place: Path | str, digest: str, context: str) -> None:
        """A data set that this run reads."""
        mlflow.log_input(dataset_of(name, place, digest), context=context, tags={"sha256": digest})

    @contextlib.contextmanager
    def system_metrics(self, enabled: bool) -> Iterator[None]:
        """CPU, memory, disk, network and GPU of this machine, every ten seconds."""
        if not enabled:
            yield
            return
        monitor = SystemMetricsMonitor(self.id, sampling_interval=10)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()


@contextlib.contextmanager
def started(name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """Opens a run (a child where one is open), and ends it as what really happened."""
    resumed = "MLFLOW_RUN_ID" in os.environ
    active = mlflow.start_run(run_name=name, nested=mlflow.active_run() is not None)
    run = Run(active.info.run_id)
    status = RunStatus.FAILED
    try:
        if resumed:
            run.tags({"mlflow.runName": name})
        run.tags({**source_tags(), **_owner(), **tags})
        yield run
        status = RunStatus.FINISHED
    except Stopped as stop:
        status = RunStatus.KILLED
        run.tags({"stopped": str(stop)})
        raise
    except Refused as error:
        status = RunStatus.FINISHED  # a refusal is a result
        run.tags({"refused": str(error)})
        raise
    except BaseException as error:
        run.tags({"error": traceback.format_exception_only(error)[-1].strip()})
        raise
    finally:
        mlflow.end_run(RunStatus.to_string(status))


def find_finished(run_id: str) -> bool:
    """Whether the store holds that run and it ended well."""
    try:
        return bool(MlflowClient().get_run(run_id).info.status == "FINISHED")
    except mlflow.exceptions.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def end_orphans() -> list[str]:
    """Ends as KILLED the runs that a dead process of this machine left RUNNING; returns their ids.

    SIGKILL leaves nobody behind to end a run. Runs whose end `mlflow run` wrote over get theirs back.
    """
    client = MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    _restore(client, experiments)
    query = f"attributes.status = 'RUNNING' and tags.`owner.host` = '{socket.gethostname()}'"
    dead = [run.info.run_id for run in client.search_runs(experiments, query) if not _alive(run.data.tags)]
    for run_id in dead:
        client.set_tag(run_id, "error", "the process ended without a word (SIGKILL or power loss)")
        client.set_terminated(run_id, "KILLED")
    return dead


def _restore(client: MlflowClient, experiments: list[str]) -> None:
    """`mlflow run` 3.17 calls every run FAILED whose process exits with another code than 0.

    It means to leave ended runs alone, but compares a status' name with its number.
    """
    for tag, status in (("stopped", "KILLED"), ("refused", "FINISHED")):
        query = f"attributes.status = 'FAILED' and tags.{tag} LIKE '%'"
        for run in client.search_runs(experiments, query):
            client.set_terminated(run.info.run_id, status, run.info.end_time)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of the leaves of nested mappings."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def fit(values: Mapping[str, float]) -> dict[str, float]:
    """The values under names that MLflow takes."""
    return {UNFIT.sub("_", name): float(value) for name, value in values.items()}


def dataset_of(name: str, place: Path | str, digest: str) -> MetaDataset:
    """A data set as MLflow names it; of the digest what its column holds."""
    return MetaDataset(resolve_dataset_source(str(place)), name=name, digest=digest[:DIGEST_LIMIT])


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The values MLflow can store: it turns infinities into 1.8e308."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _tag(name: str, value: object) -> mlflow.entities.RunTag:
    return mlflow.entities.RunTag(name, str(value)[:TAG_LIMIT])


def _owner() -> dict[str, str]:
    started_at = psutil.Process().create_time()
    return {"owner.host": socket.gethostname(), "owner.pid": str(os.getpid()), "owner.started": f"{started_at:.2f}"}


def _alive(tags: Mapping[str, str]) -> bool:
    try:
        process = psutil.Process(int(tags["owner.pid"]))
        return f"{process.create_time():.2f}" == tags["owner.started"]
    except psutil.NoSuchProcess:
        return False
