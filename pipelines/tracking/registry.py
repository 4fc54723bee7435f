"""Registered versions: written without pickle, found by alias, described by tags."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

from pipelines import pickled
from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.release import seal
from pipelines.release.carried import carry
from pipelines.release.pins import pinned
from pipelines.secrets import masked_values
from pipelines.tracking import moves
from pipelines.tracking.run import fit
from pipelines.tracking.sending import dataset_of

PACKAGE = PROJECT / "pipelines"
# What the code of a version imports; of the rest each brings what it needs.
REQUIRED = (
    "accelerate",
    "httpx2",
    "huggingface_hub",
    "mlflow",
    "pandas",
    "peft",
    "pydantic",
    "safetensors",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Version:
    """A registered version."""

    name: str
    number: str
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"

    @property
    def digest(self) -> str:
        """Of all its files. Raises UserError where the registry has none: another program registered it."""
        if seal.DIGEST_TAG not in self.tags:
            raise UserError(f"{self.uri}: no tag {seal.DIGEST_TAG}; expected a version that package registered")
        return self.tags[seal.DIGEST_TAG]


def write_model(
    folder: Path, artifacts: Mapping[str, Path], settings: Mapping[str, Any], example: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the pyfunc's files, sealed: models-from-code, chat signature, input example, and the code that it runs.

    An artifact lies at `artifacts/NAME`, one that is a file at `artifacts/` with its own name.
    """
    # MLflow would copy the project's lock and pyproject into the model and prefer them to the requirements.
    os.environ |= {"MLFLOW_UV_AUTO_DETECT": "false", "MLFLOW_LOG_UV_FILES": "false"}
    quantized = ("bitsandbytes",) if settings["adapter"]["quantization"] else ()
    with tempfile.TemporaryDirectory() as temporary:
        carry(PROJECT, f"{PACKAGE.name}.tracking.chat_model", Path(temporary))
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=MlflowModel(),
            python_model=str(PACKAGE / "tracking" / "chat_model.py"),
            code_paths=[str(Path(temporary) / PACKAGE.name)],
            artifacts={name: str(path) for name, path in artifacts.items()},
            model_config=dict(settings),
            signature=ModelSignature(CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA),
            input_example={"messages": [dict(message) for message in example]},
            pip_requirements=pinned((*REQUIRED, *quantized)),
        )
    _called(folder, artifacts)
    seal.write(folder)


def _called(folder: Path, artifacts: Mapping[str, Path]) -> None:
    """Gives artifacts that are folders their names; MLflow has called each as its source is called.

    Where sources lay on the machine that packaged them is left out.
    """
    described = MlflowModel.load(str(folder))
    flavor = (described.flavors or {})["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for name, artifact in flavor["artifacts"].items():
        if artifacts[name].is_dir():
            (folder / artifact["path"]).rename(folder / "artifacts" / name)
            artifact["path"] = f"artifacts/{name}"
        artifact["uri"] = artifact["path"]
    described.save(str(folder / "MLmodel"))


def log_model(run_id: str, name: str, folder: Path, params: Mapping[str, str]) -> tuple[str, str]:
    """The folder, sealed, as a logged model of the run; returns the model's id and the digest of its files."""
    client = MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    # MLflow takes dots in a registered model's name, and none in a logged model's.
    model = client.create_logged_model(
        experiment, name.replace(".", "-"), run_id, params=masked_values(dict(params)), model_type="adapter"
    )
    described = MlflowModel.load(str(folder))
    described.model_id, described.run_id = model.model_id, run_id
    described.save(str(folder / "MLmodel"))
    pickled.check(folder, name)
    digest = seal.write(folder)
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id), digest


def log_metrics(model_id: str, metrics: Mapping[str, float], data: Mapping[str, str]) -> None:
    """Metrics of a logged model on a data set: its `name`, `digest` and `place`."""
    mlflow.log_metrics(fit(metrics), model_id=model_id, dataset=dataset_of(data["name"], data["place"], data["digest"]))


def register(name: str, model_id: str, run_id: str, tags: Mapping[str, str]) -> Version:
    """A new version of the registered model; the model is made where its name is new."""
    client = MlflowClient()
    moves.make_model(client, name)
    plain: dict[str, str] = masked_values(dict(tags))
    made = client.create_model_version(name, f"models:/{model_id}", run_id, plain, model_id=model_id)
    return Version(name, str(made.version), plain)


def find(uri: str, field: str = "promote.model") -> Version:
    """The version behind `models:/name/3` or `models:/name@alias`, asked for by a field of the configuration.

    Raises UserError where there is none.
    """
    name, by_alias, rest = _parsed(uri, field)
    client = MlflowClient()
    try:
        found = (client.get_model_version_by_alias if by_alias else client.get_model_version)(name, rest)
    except MlflowException as error:
        raise UserError(f"{field}: {uri}: {error.message}") from None
    return Version(name, str(found.version), dict(found.tags))


def is_there(uri: str, field: str) -> bool:
    """Whether the registry holds what the URI names. Raises UserError where it is no URI of a version."""
    name, by_alias, rest = _parsed(uri, field)
    return holder(name, rest) is not None if by_alias else exists(name, rest)


def _parsed(uri: str, field: str) -> tuple[str, bool, str]:
    """Name, whether an alias follows, and the alias or number."""
    name, separator, rest = uri.removeprefix("models:/").partition("@" if "@" in uri else "/")
    if not uri.startswith("models:/") or not separator or not rest:
        raise UserError(f"{field}: expected models:/name/version or models:/name@alias, got {uri!r}")
    return name, separator == "@", rest


def contents(version: Version) -> tuple[Path, dict[str, Any]]:
    """The adapter's folder and the settings of a version, downloaded where it isn't local.

    Raises UserError where the version is none of ours.
    """
    return described(files(version), version.uri)


def described(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """The adapter's folder and the settings in the files of version `name`. Raises UserError where it isn't ours."""
    flavor = (MlflowModel.load(str(folder)).flavors or {}).get("python_function", {})
    artifacts, settings = flavor.get("artifacts") or {}, flavor.get("config") or {}
    if "adapter" not in artifacts or "template" not in settings:
        raise UserError(f"{name}: expected a version that package registered, found other files")
    return folder / artifacts["adapter"]["path"], dict(settings)


def files(version: Version) -> Path:
    """The folder of a version, downloaded where it isn't local, checked against its seal.

    Raises UserError naming the file that differs or is pickled. No code of it may be run there: `copied` is for that.
    """
    folder = Path(mlflow.artifacts.download_artifacts(version.uri))
    seal.check(folder, version.digest, version.uri)
    pickled.check(folder, version.uri)
    return folder


def copied(version: Version, folder: Path) -> Path:
    """The files of a version in a new `folder`, without what running its code has compiled, checked as they lie there.

    Raises UserError naming the file that differs or is pickled.
    """
    source = Path(mlflow.artifacts.download_artifacts(version.uri))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__", seal.DOWNLOADED))
    seal.check(folder, version.digest, version.uri)
    pickled.check(folder, version.uri)
    return folder


def named(uri: str | None, field: str, made: Mapping[str, Any] | None) -> Version:
    """The version behind a URI, or, without one, the version that `package` says it `made`."""
    if uri is None and made is not None:
        uri = f"models:/{made['name']}/{made['version']}"
    if uri is None:
        raise UserError(f"{field}: required: models:/name/version or models:/name@alias")
    return find(uri, field)


def logged_model(version: Version) -> str | None:
    """The id of the logged model that a version was made from; None where the registry doesn't say."""
    source = MlflowClient().get_model_version(version.name, version.number).source or ""
    found = source.removeprefix("models:/")
    return found if found.startswith("m-") else None


def exists(name: str, number: str) -> bool:
    """Whether the registry still holds that version."""
    return moves.is_there(MlflowClient(), name, number)


def holder(name: str, alias: str) -> str | None:
    """The version that holds an alias."""
    return moves.holder_of(MlflowClient(), name, alias)


def point(name: str, alias: str, number: str) -> None:
    """Moves an alias to a version."""
    MlflowClient().set_registered_model_alias(name, alias, number)


def tag(version: Version, values: Mapping[str, object]) -> None:
    """Writes tags onto a version."""
    for key, value in values.items():
        MlflowClient().set_model_version_tag(version.name, version.number, key, masked_values(str(value), key))
