"""Where runs are kept: the embedded SQLite store, or the server that the user names."""

import contextlib
import fcntl
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.tracking import MlflowClient

from pipelines.config.paths import PROJECT
from pipelines.config.schema import Tracking
from pipelines.errors import Unreachable, UserError
from pipelines.progress import say

DATABASE = PROJECT / "mlflow.db"
EMBEDDED = f"sqlite:///{DATABASE}"
DEFAULT_EXPERIMENT = "tunesmith"
SECONDS_TO_ANSWER = 5


def open_store(tracking: Tracking) -> None:
    """Points MLflow at the store and chooses the experiment.

    Raises Unreachable where a server doesn't answer, UserError where a database can't be opened.
    """
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or EMBEDDED
    if uri.startswith("sqlite:"):
        uri = _absolute(uri)
        create_database(uri)
    elif uri.startswith(("http://", "https://")):
        knock(uri)
    os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow.set_tracking_uri(uri)
    # A run that `mlflow run` opened belongs to its experiment already; choosing another is an error there.
    if "MLFLOW_RUN_ID" not in os.environ:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", tracking.experiment)
        mlflow.set_experiment(experiment_id=experiment(name, MlflowClient()))


def create_database(uri: str) -> None:
    """Makes the schema of a SQLite store once, behind a lock: racing first uses break it."""
    path = Path(uri.removeprefix("sqlite:///"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".lock")):
            if not path.exists():
                _create(path)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"tracking.uri: can't open {path}: {error}") from None


def _create(path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    say(f"making MLflow's store, {path}")
    building = path.with_name(path.name + ".building")
    building.unlink(missing_ok=True)
    # The artifact root is given here: MLflow would freeze the caller's working folder into the store.
    store = SqlAlchemyStore(f"sqlite:///{building}", (path.parent / "mlartifacts").as_uri())
    # Experiment 0 is where a plain `mlflow run .` puts its runs.
    store.rename_experiment("0", DEFAULT_EXPERIMENT)
    store.engine.dispose()
    with contextlib.closing(sqlite3.connect(building)) as connection:
        connection.execute("pragma journal_mode=wal")
    building.rename(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _absolute(uri: str) -> str:
    path = Path(uri.removeprefix("sqlite:///"))
    return f"sqlite:///{path if path.is_absolute() else PROJECT / path}"


def knock(uri: str, field: str = "tracking.uri") -> None:
    """MLflow itself retries an absent server for minutes before it says so. Raises Unreachable naming the field."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SECONDS_TO_ANSWER):
            return
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in, MLflow's own call tells
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(f"{field}: no MLflow server answers at {uri}: {reason}") from None


def experiment(name: str, client: MlflowClient) -> str:
    """The id of the experiment of that name, made where the store has none."""
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    uri = client.tracking_uri
    root = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / name if uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, artifact_location=root.as_uri() if root else None))
