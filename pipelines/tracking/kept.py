"""The run of a stage that isn't finished, remembered beside its work folder: the next start goes on in it."""

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.holding import LOCK, beside, remove_empty
from pipelines.progress import say
from pipelines.tracking.sending import tag_of

RECORD = "run.json"
OF_AN_END = ("error", "stopped")  # tags that say how a run ended; one that goes on hasn't


@dataclass(frozen=True)
class Kept:
    """What is kept of the run that makes a product; `patience_s` is how long its end waits for the tracking server."""

    product: Path
    patience_s: float

    @classmethod
    def of(cls, work: Path, patience_s: float = 0.0) -> "Kept":
        """Of the product that is made in `work`."""
        return cls(work.with_name(work.name.removesuffix(".partial")), patience_s)

    @property
    def folder(self) -> Path:
        return beside(self.product)

    def run_id(self) -> str | None:
        """The run of an earlier start; None where there was none."""
        return str(self._read()["run_id"]) if (self.folder / RECORD).exists() else None

    def remember(self, run_id: str) -> list[str]:
        """Keeps the run's id; returns when it was started, and started again."""
        before: list[str] = self._read()["starts"] if self.run_id() == run_id else []
        starts = [*before, datetime.now(UTC).isoformat(timespec="seconds")]
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f"{RECORD}.new"
        new.write_text(json.dumps({"run_id": run_id, "starts": starts}) + "\n", encoding="utf-8")
        new.replace(self.folder / RECORD)
        return starts

    def forget(self) -> None:
        """The run is over, and everything has arrived."""
        for path in self.folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        remove_empty(self.folder)

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        return found


def goes_on(run_id: str, name: str) -> bool:
    """Whether a run can be opened again; says why where it can't."""
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        reason = "this store doesn't know it"
    else:
        if run.info.status == "FINISHED":
            return False
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            reason = "it was deleted"
        elif run.info.experiment_id != _experiment():
            reason = "it is in another experiment"
        else:
            say(f"{name}: goes on in run {run_id}")
            return True
    say(f"{name}: run {run_id} of the start before can't go on, {reason}; a new run is opened")
    return False


def renew(run_id: str, parent: str | None, starts: list[str]) -> None:
    """A run that goes on: it hasn't ended, hangs under the flow that is open, and tells when it was resumed."""
    client = MlflowClient()
    had = client.get_run(run_id).data.tags
    for tag in OF_AN_END:
        if tag in had:
            client.delete_tag(run_id, tag)
    tags = {"resumed": len(starts) - 1, "resumed.at": ", ".join(starts[1:])}
    tags |= {"mlflow.parentRunId": parent} if parent else {}
    client.log_batch(run_id, tags=[tag_of(name, value) for name, value in tags.items()])


def _experiment() -> str:
    """The experiment that a new run would belong to."""
    active = mlflow.active_run()
    return str(active.info.experiment_id if active else mlflow.tracking.fluent._get_experiment_id())
