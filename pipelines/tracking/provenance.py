"""What the registry and the runs know of where a version came from and where it went."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import mlflow
from mlflow.entities import LifecycleStage, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.tracking.registry import Version

COPY_OF = "release.copy_of"


@dataclass(frozen=True)
class Registered:
    """A version with when it was registered (UTC) and the aliases that it holds now."""

    version: Version
    at: datetime
    run: str
    aliases: list[str]


def registered(version: Version) -> Registered:
    """What the registry says of a version."""
    return _registered(MlflowClient().get_model_version(version.name, version.number))


def versions(name: str) -> list[Registered]:
    """All versions of a registered model by number; none where there is no such model."""
    found = (_registered(one) for one in _search(f"name = '{name}'"))
    return sorted(found, key=lambda one: int(one.version.number))


def copies(version: Version) -> list[Registered]:
    """The versions whose bytes were copied from this one, under whatever name."""
    found = (_registered(one) for one in _search(f"tags.`{COPY_OF}` = '{version.uri}'"))
    return sorted(found, key=lambda one: (one.version.name, int(one.version.number)))


def with_tag(tag: str, value: str) -> Version | None:
    """The newest version whose tag has that value; None where there is none."""
    found = [_registered(one) for one in _search(f"tags.`{tag}` = '{value}'")]
    return max(found, key=lambda one: one.at).version if found else None


def _search(query: str) -> Iterator[object]:
    client, token = MlflowClient(), None
    while True:
        page = client.search_model_versions(query, page_token=token)
        for one in page:
            # A search leaves aliases and some tags out.
            yield client.get_model_version(one.name, one.version)
        if not (token := page.token):
            return


def _registered(found: object) -> Registered:
    one = vars(found)
    version = Version(one["_name"], str(one["_version"]), dict(one["_tags"]))
    return Registered(version, moment(one["_creation_time"]), str(one["_run_id"] or ""), list(one["_aliases"]))


def moment(milliseconds: int) -> datetime:
    """A time of MLflow's, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def has_run(run_id: str) -> bool:
    """Whether the store still holds the run, and nobody deleted it."""
    try:
        return bool(MlflowClient().get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def maker(digest: str) -> tuple[str, dict[str, object]] | None:
    """The run that made a product, with the product's manifest; None where no run of it is left."""
    client = MlflowClient()
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`product.digest` = '{digest}'", ViewType.ACTIVE_ONLY, max_results=1)
    if not found:
        return None
    run_id = str(found[0].info.run_id)
    try:
        return run_id, dict(mlflow.artifacts.load_dict(f"runs:/{run_id}/manifest.json"))
    except (MlflowException, OSError):
        return run_id, {}  # its files were cleared away


def open_child(parent: str, name: str) -> str:
    """A run below `parent` for a process of its own, which takes it up by its id."""
    client = MlflowClient()
    experiment = client.get_run(parent).info.experiment_id
    made = client.create_run(experiment, tags={"mlflow.parentRunId": parent}, run_name=name)
    return str(made.info.run_id)


def end_if_open(run_id: str) -> None:
    """Ends as FAILED a run that the process which should have done so didn't take up."""
    client = MlflowClient()
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, "FAILED")
