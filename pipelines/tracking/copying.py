"""A version's bytes, copied into a logged model that belongs to where they go.

MLflow copies a pointer: whoever may edit the run that made a version could change afterwards what its copies serve, and
deleting the source would break them.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.errors import UserError
from pipelines.progress import say
from pipelines.release import seal
from pipelines.tracking import moves, store
from pipelines.tracking.patience import again
from pipelines.tracking.provenance import COPY_OF
from pipelines.tracking.registry import Version

RELEASES = ".releases"
PAST = "not of the last decision"
OF_THE_SOURCE = ("gate.", COPY_OF)  # tags that say something of the source alone


@dataclass(frozen=True)
class Registry:
    """A place that holds versions: the store that is open (`uri` None), or another MLflow server."""

    uri: str | None = None

    @cached_property
    def client(self) -> MlflowClient:
        """Of this place. Raises Unreachable where no server answers."""
        if self.uri is None:
            return MlflowClient()
        store.knock(self.uri, "promote.registry")
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def find(self, name: str, number: str) -> Version:
        found = again(lambda: self.client.get_model_version(name, number))
        return Version(name, str(found.version), dict(found.tags))

    def download(self, version: Version, folder: Path) -> Path:
        """Where the version's files lie, in the new `folder`, checked there. Raises UserError naming what differs."""
        location = self.client.get_model_version_download_uri(version.name, version.number)
        if location.startswith("models:/m-"):
            location = self.client.get_logged_model(location.removeprefix("models:/")).artifact_location
        return self._checked(location, folder, version.digest, version.uri)

    def copied(self, name: str, folder: Path, source: Version) -> Version:
        """A version of `name` that holds the files of `folder`: an earlier copy of the same bytes, or a new one.

        `folder` holds the files of `source`, whose seal was checked. Raises UserError where what was written doesn't
        read back as it was.
        """
        moves.make_model(self.client, name)
        experiment = self._experiment(f"{name}{RELEASES}")
        found = self._earlier(name, experiment, source.digest)
        return found or self._new(name, experiment, folder, source)

    def _earlier(self, name: str, experiment: str, digest: str) -> Version | None:
        """A copy counts only where its bytes lie among this name's own releases, and are what they were."""
        query = f"name = '{name}' and tags.`{seal.DIGEST_TAG}` = '{digest}'"
        for found in again(lambda: self.client.search_model_versions(query)):
            version = Version(name, str(found.version), dict(found.tags))
            model_id = (found.source or "").removeprefix("models:/")
            if COPY_OF not in version.tags or not model_id.startswith("m-"):
                continue
            if self._experiment_of(model_id) != experiment:
                continue
            with tempfile.TemporaryDirectory() as temporary:
                try:
                    self.download(version, Path(temporary) / "files")
                except UserError as error:
                    say(f"  {error}: it is not used again")
                    continue
            return version
        return None

    def _new(self, name: str, experiment: str, folder: Path, source: Version) -> Version:
        client = self.client
        # MLflow refuses dots in names of logged models, and stages are named with them.
        params, called = {seal.DIGEST_TAG: source.digest}, name.replace(".", "-")
        model = again(lambda: client.create_logged_model(experiment, called, params=params, model_type="adapter"))
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        with tempfile.TemporaryDirectory() as temporary:
            written = f"{name}: the copy of {source.uri}"
            self._checked(model.artifact_location, Path(temporary) / "files", source.digest, written)
        tags = {key: value for key, value in source.tags.items() if not key.startswith(OF_THE_SOURCE)}
        tags |= {COPY_OF: source.uri, seal.DIGEST_TAG: source.digest}
        at = f"models:/{model.model_id}"
        made = again(lambda: client.create_model_version(name, at, tags=tags, model_id=model.model_id))
        return Version(name, str(made.version), tags)

    def _checked(self, location: str, folder: Path, digest: str, name: str) -> Path:
        """Downloaded without what running its code has compiled, and checked as it lies there."""
        folder.mkdir(parents=True)
        mlflow.artifacts.download_artifacts(location, dst_path=str(folder), tracking_uri=self.uri)
        found = folder if (folder / "MLmodel").exists() else next((p.parent for p in folder.glob("*/MLmodel")), folder)
        for compiled in list(found.rglob("__pycache__")):
            shutil.rmtree(compiled)
        (found / seal.DOWNLOADED).unlink(missing_ok=True)
        seal.check(found, digest, name)
        return found

    def _experiment(self, name: str) -> str:
        """Where the bytes of a registered model's releases lie: its own, so that whoever edits runs can't edit them."""
        try:
            return again(lambda: store.experiment(name, self.client))
        except MlflowException as error:
            # Two promoters at once make the same one.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return store.experiment(name, self.client)

    def _experiment_of(self, model_id: str) -> str | None:
        try:
            return str(self.client.get_logged_model(model_id).experiment_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def tag(self, version: Version, values: Mapping[str, object], stale: str = "") -> None:
        """Writes tags onto a version; those that begin with `stale` and aren't among them say that they are past."""
        name, number = version.name, version.number
        kept = again(lambda: self.client.get_model_version(name, number)).tags
        # To delete one takes a permission that whoever may move an alias need not have.
        past = {key: PAST for key in kept if stale and key.startswith(stale) and key not in values}
        for key, value in {**past, **values}.items():
            again(partial(self.client.set_model_version_tag, name, number, key, str(value)))
