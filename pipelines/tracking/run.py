"""A run as a stage sees it: log, save, input, child."""

import contextlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow.entities import RunStatus, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

from pipelines.errors import Refused, Stopped
from pipelines.progress import say
from pipelines.secret_kinds import MASK
from pipelines.secrets import masked, masked_values
from pipelines.tracking.kept import Kept, goes_on, renew
from pipelines.tracking.machine import Machine
from pipelines.tracking.sending import Entry, Unsent, answering, send, tag_of
from pipelines.tracking.source import source_tags
from pipelines.tracking.spool import Sender, Spool, send_left

UNFIT = re.compile(r"[^\w\-. :/]")  # what MLflow refuses in a metric's name, and a user's own name may hold
REVOKE = "delete the run (mlflow gc --run-ids) and revoke the secret"
PATIENCE_OF_A_FAILURE_S = 10.0  # whoever sent SIGTERM may kill after half a minute


@dataclass(frozen=True)
class Run:
    """An open MLflow run; with a spool what it logs is kept in a file first, and sent aside."""

    id: str
    spool: Spool | None = None
    sender: Sender | None = None

    def params(self, values: Mapping[str, Any]) -> None:
        """Flattened configuration; `mlflow run` owns the bare names, so ours start with `cfg.`."""
        self._log({"kind": "params", "values": {f"cfg.{name}": str(value) for name, value in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self._log({"kind": "metrics", "values": fit(values), "step": step, "at": get_current_time_millis()})

    def tags(self, values: Mapping[str, object]) -> None:
        self._log({"kind": "tags", "values": {name: str(value) for name, value in values.items()}})

    def file(self, path: Path, folder: str | None = None) -> None:
        if self.spool:
            # The file itself moves when its product is published.
            path = Path(shutil.copyfile(path, self.spool.place_for(path.name)))
        self._log({"kind": "file", "path": str(path), "folder": folder})

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
        self._log({"kind": "table", "name": name})

    def input(self, name: str, place: Path | str, digest: str, context: str) -> None:
        """A data set that this run reads."""
        self._log({"kind": "input", "name": name, "place": str(place), "digest": digest, "context": context})

    @contextlib.contextmanager
    def system_metrics(self, enabled: bool) -> Iterator[None]:
        """CPU, memory, disk, network and GPU of this machine, every ten seconds."""
        if not enabled:
            yield
            return
        with Machine(self.id, self.metrics, self.spool.next_step("system/") if self.spool else 0):
            yield

    def settle(self, patience_s: float) -> int:
        """Waits until what was logged has arrived, at most that long; returns how many entries haven't."""
        return self.sender.flush(patience_s) if self.sender else 0

    def _log(self, entry: Entry) -> None:
        """Keeps or sends an entry, without secrets: what lies in a file until it is sent has none either."""
        entry = _without_secrets(entry)
        if self.spool is None:
            with answering():
                send(self.id, [entry])
            return
        if self.sender:
            self.sender.check()
        self.spool.add(entry)


@dataclass(frozen=True)
class Silent(Run):
    """The run as ranks see it that don't log: they share its name, and nothing of theirs is kept."""

    def file(self, path: Path, folder: str | None = None) -> None:
        pass

    @contextlib.contextmanager
    def system_metrics(self, enabled: bool) -> Iterator[None]:
        yield

    def _log(self, entry: Entry) -> None:
        pass


@contextlib.contextmanager
def attached(run_id: str, work: Path, writer: str = "worker") -> Iterator[Run]:
    """The run that another process has opened, and ends, for a worker that logs into it.

    `work` is the stage's work folder. What is logged is kept beside it, and the process that opened the run sends it,
    also what a worker that was killed has left; the worker itself never calls the tracking server.
    """
    spool = Spool(Kept.of(work).folder, run_id, writer)
    try:
        yield Run(run_id, spool)
    finally:
        spool.close()


@contextlib.contextmanager
def started(name: str, tags: Mapping[str, str], kept: Kept | None = None) -> Iterator[Run]:
    """Opens a run (a child where one is open), and ends it as what really happened.

    With `kept`, the run of an earlier start that didn't finish goes on, and what is logged is sent aside. Raises Unsent
    where the tracking server is away: what wasn't sent is kept, and the run left for the next start to end.
    """
    with answering():
        run_id = _opened(masked(name), kept)
    status: int | None = RunStatus.FAILED
    with contextlib.ExitStack() as stack:
        run = _spooled(run_id, kept, stack) if kept else Run(run_id)
        try:
            run.tags({**source_tags(), **tags})
            yield run
            _settle(run, kept)
            status = RunStatus.FINISHED
        except Stopped as stop:
            status = RunStatus.KILLED
            _last_words(run, {"stopped": str(stop)})
            raise
        except Refused as error:
            _last_words(run, {"refused": str(error)})
            _settle(run, kept)
            status = RunStatus.FINISHED  # a refusal is a result
            raise
        except Unsent:
            status = None
            raise
        except BaseException as error:
            _last_words(run, {"error": traceback.format_exception_only(error)[-1].strip()})
            raise
        finally:
            _end(run, status, kept)


def _opened(name: str, kept: Kept | None) -> str:
    """A run's id: the one that `mlflow run` gave, or that of an earlier start, or a new one's."""
    given, earlier, parent = "MLFLOW_RUN_ID" in os.environ, kept.run_id() if kept else None, mlflow.active_run()
    client, owner = MlflowClient(), [tag_of(tag, value) for tag, value in _owner().items()]
    again = earlier if earlier and not given and goes_on(earlier, name) else None
    if again:
        client.log_batch(again, tags=owner)  # running again under a dead owner it would be ended as an orphan
    run = mlflow.start_run(run_id=again, run_name=name, nested=parent is not None)
    run_id = str(run.info.run_id)
    named = [tag_of("mlflow.runName", name), *_plain_again(run)] if given else []
    client.log_batch(run_id, tags=[*owner, *named])
    if kept:
        starts = kept.remember(run_id)
        if len(starts) > 1:
            renew(run_id, parent.info.run_id if parent else None, starts)
        elif earlier:
            client.set_tag(run_id, "resumed_from", earlier)
    return run_id


def _plain_again(run: mlflow.ActiveRun) -> list[RunTag]:
    """Tags of what `mlflow run` recorded before this process began, without the secrets in them.

    Parameters can't be written over: the user is told.
    """
    for name, value in run.data.params.items():
        if masked_values(value, name) != value:
            say(f"run {run.info.run_id}: `mlflow run` has recorded a secret in its parameter {name}; {REVOKE}")
    had = run.data.tags
    return [tag_of(name, value) for name, value in had.items() if masked_values(value, name) != value]


def _spooled(run_id: str, kept: Kept, stack: contextlib.ExitStack) -> Run:
    with answering():
        send_left(kept.folder, but=run_id)
    spool = Spool(kept.folder, run_id)
    stack.callback(spool.close)
    return Run(run_id, spool, stack.enter_context(Sender(kept.folder, run_id)))


def _settle(run: Run, kept: Kept | None) -> None:
    """Raises Unsent where the server stays away for longer than the user is patient."""
    if kept and (left := run.settle(kept.patience_s)):
        raise Unsent(
            f"tracking.uri: the MLflow server doesn't answer; the work is done, and {left:,} entries of run {run.id} "
            f"are kept in {kept.folder}: start again with the same settings to send them"
        )


def _last_words(run: Run, tags: Mapping[str, object]) -> None:
    """Why a run ends early; also where the store has refused what came before."""
    if run.sender and run.sender.refused:
        run = Run(run.id)
    try:
        run.tags(tags)
    except Unsent as error:
        say(f"  {error}")


def _end(run: Run, status: int | None, kept: Kept | None) -> None:
    """Ends the run where the server answers; else the next start does."""
    refused = run.sender is not None and run.sender.refused is not None
    left = 0 if refused or status in (None, RunStatus.FINISHED) else run.settle(PATIENCE_OF_A_FAILURE_S)
    if status is None or left:
        if left:
            say(f"  run {run.id}: {left:,} entries aren't sent, the tracking server is away; the next start sends them")
        # `mlflow.end_run` would call the server.
        mlflow.tracking.fluent._active_run_stack.get().pop()
        return
    try:
        with answering():
            mlflow.end_run(RunStatus.to_string(status))
    except Unsent as error:
        if status == RunStatus.FINISHED:
            raise
        say(f"  {error}")  # what ends the run early is told by its own error
    if kept and status == RunStatus.FINISHED:
        if run.sender:
            run.sender.stop()
        kept.forget()


def is_child_of_open(run_id: str) -> bool:
    """Whether a run belongs to the flow that is open now: a flow that goes on has it already."""
    parent = mlflow.active_run()
    if parent is None:
        return False
    with answering():
        return bool(MlflowClient().get_run(run_id).data.tags.get("mlflow.parentRunId") == parent.info.run_id)


def find_finished(run_id: str) -> bool:
    """Whether the store holds that run and it ended well."""
    try:
        with answering():
            return bool(MlflowClient().get_run(run_id).info.status == "FINISHED")
    except mlflow.exceptions.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def ended_at(run_id: str) -> str:
    """When a run ended, as an ISO time in UTC; when it began, where it hasn't ended."""
    info = MlflowClient().get_run(run_id).info
    return datetime.fromtimestamp((info.end_time or info.start_time) / 1000, UTC).isoformat(timespec="seconds")


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


def _without_secrets(entry: Entry) -> Entry:
    plain: dict[str, Any] = masked_values(entry)
    if "values" in plain:  # MLflow's names hold no angle brackets
        held = plain["values"].items()
        plain["values"] = {UNFIT.sub("_", name) if MASK in name else name: value for name, value in held}
    return plain | {"path": entry["path"]} if "path" in entry else plain


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
    return {UNFIT.sub("_", masked(name)): float(value) for name, value in values.items()}


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The values MLflow can store: it turns infinities into 1.8e308."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _owner() -> dict[str, str]:
    started_at = psutil.Process().create_time()
    return {"owner.host": socket.gethostname(), "owner.pid": str(os.getpid()), "owner.started": f"{started_at:.2f}"}


def _alive(tags: Mapping[str, str]) -> bool:
    try:
        process = psutil.Process(int(tags["owner.pid"]))
        return f"{process.create_time():.2f}" == tags["owner.started"]
    except psutil.NoSuchProcess:
        return False


def latest(run_id: str, metric: str) -> float | None:
    """The last value of a metric in a run or in what ran below it, the newest run first; None where none has it."""
    client = MlflowClient()
    run = client.get_run(run_id)
    if metric in run.data.metrics:
        return float(run.data.metrics[metric])
    below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    found = (latest(child.info.run_id, metric) for child in below)
    return next((value for value in found if value is not None), None)
