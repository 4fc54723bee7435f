"""What a run logs, as entries that can be sent twice and arrive once.

An entry is a mapping that JSON holds. Sent again it changes nothing: the stores key a point of a curve by name, time,
step and value, a tag and a parameter by their names, a data set by its digest, a file by its path.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_ARTIFACTS

from pipelines.errors import Unreachable
from pipelines.secret_kinds import MASK
from pipelines.secrets import masked, masked_values

Entry = Mapping[str, Any]

IN_ONE_CALL = ("metrics", "tags", "params")
TAG_LIMIT = 8000
DATASET_TRIES = 10
UNIQUE = re.compile(r"unique constraint.*datasets|datasets.*unique constraint", re.IGNORECASE | re.DOTALL)
DIGEST_LIMIT = 36  # MLflow's column; the whole digest goes into a tag of the input
BUSY = (408, 425, 429)  # HTTP's ways to say "later"


class Unsent(Unreachable):
    """The tracking server is away; what wasn't sent to it is kept."""


def send(run_id: str, entries: Sequence[Entry]) -> None:
    """Sends entries in their order; points, tags and parameters that follow one another go in one call."""
    at = 0
    while at < len(entries):
        until = at
        while until < len(entries) and entries[until]["kind"] in IN_ONE_CALL:
            until += 1
        if until > at:
            _batch(run_id, entries[at:until])
        else:
            _single(run_id, entries[at])
            until = at + 1
        at = until


def may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later: nobody answered, or the answer was a fault of the server's."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    else:
        return isinstance(error, requests.RequestException | TimeoutError | ConnectionError)
    return status >= 500 or status in BUSY


@contextlib.contextmanager
def answering(kept: str = "") -> Iterator[None]:
    """Raises Unsent where a call of the block fails because the tracking server is away."""
    try:
        yield
    except Exception as error:
        if not may_pass(error):
            raise
        raise Unsent(f"tracking.uri: the MLflow server doesn't answer: {short(error)}{kept}") from None


def short(error: Exception) -> str:
    """The first line of what a call said, of bearable length."""
    return masked(str(error)).splitlines()[0][:200] if str(error) else type(error).__name__


def tag_of(name: str, value: object) -> RunTag:
    """A tag with as much of its value as MLflow takes, without secrets."""
    return RunTag(masked(name).replace(MASK, "_masked_"), str(masked_values(str(value), name))[:TAG_LIMIT])


def dataset_of(name: str, place: Path | str, digest: str) -> MetaDataset:
    """A data set as MLflow names it; of the digest what its column holds."""
    return MetaDataset(resolve_dataset_source(str(place)), name=name, digest=digest[:DIGEST_LIMIT])


def _batch(run_id: str, entries: Sequence[Entry]) -> None:
    points: list[Metric] = []
    tags: dict[str, str] = {}
    params: list[tuple[str, str]] = []
    for entry in entries:
        if entry["kind"] == "metrics":
            points += [Metric(name, value, entry["at"], entry["step"]) for name, value in entry["values"].items()]
        elif entry["kind"] == "tags":
            tags |= entry["values"]
        else:
            params += entry["values"].items()
    MlflowClient().log_batch(
        run_id,
        metrics=points,
        params=[Param(name, value) for name, value in dict.fromkeys(params)],
        tags=[tag_of(name, value) for name, value in tags.items()],
    )


def _single(run_id: str, entry: Entry) -> None:
    kind, client = entry["kind"], MlflowClient()
    if kind == "file":
        client.log_artifact(run_id, entry["path"], entry["folder"])
    elif kind == "table":
        _table(client, run_id, entry["name"])
    elif kind == "input":
        given = dataset_of(entry["name"], entry["place"], entry["digest"])._to_mlflow_entity()
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, entry["context"]), InputTag("sha256", entry["digest"])]
        _input(client, run_id, DatasetInput(given, tags))
    else:
        raise ValueError(f"{kind}: no such kind of entry")


def _input(client: MlflowClient, run_id: str, given: DatasetInput) -> None:
    """Two runs that name a new data set at one moment both insert it; the later one finds it the next time."""
    for tries_left in reversed(range(DATASET_TRIES)):
        try:
            client.log_inputs(run_id, [given])
            return
        except MlflowException as error:
            if tries_left == 0 or not UNIQUE.search(str(error)):
                raise


def _table(client: MlflowClient, run_id: str, name: str) -> None:
    """Names an artifact as a table, which the MLflow UI then shows as one."""
    entry = {"path": name, "type": "table"}
    logged = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*(e for e in logged if e != entry), entry]))
