"""What runs on each node: the launcher with a resolved configuration, and who the node is, in the engine's words."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.config.compose import as_yaml
from pipelines.config.schema import Config
from pipelines.errors import UserError

RESOLVED = "config.yaml"


@dataclass(frozen=True)
class Place:
    """How a node learns its number and the first node's address: shell expressions of the engine's variables."""

    node_rank: str
    main_address: str


def shell(config: Config, place: Place, resolved: str, before: str = "") -> str:
    """The line that a node's shell runs; `resolved` is where the node finds the configuration."""
    # SkyPilot's folder begins with ~, which a quoted word would keep.
    folder = config.engine.folder if config.engine.folder.startswith("~/") else shlex.quote(config.engine.folder)
    who = {
        "NODE_RANK": place.node_rank,
        "MASTER_ADDR": place.main_address,
        "MASTER_PORT": str(config.engine.port),
    }
    told = " ".join(f'{name}="{value}"' for name, value in who.items()) if config.compute.num_nodes > 1 else ""
    runs = f"python -m pipelines {config.job.stage} --resolved {shlex.quote(resolved)}"
    return f"cd {folder} && {before}exec env {told} {runs}".replace("  ", " ")


def moved(config: Config) -> str:
    """The configuration as YAML with products where all nodes see them."""
    if config.engine.claim is None:
        if config.compute.num_nodes > 1:
            raise UserError("engine.claim: required with compute.num_nodes over 1: all nodes write into one folder")
        return as_yaml(config)
    mount = config.engine.mount
    paths = {"rows": f"{mount}/rows", "adapters": f"{mount}/adapters", "outputs": f"{mount}/outputs"}
    relative = {name: place for name, place in paths.items() if not getattr(config.paths, name).startswith("/")}
    return as_yaml(config.model_copy(update={"paths": config.paths.model_copy(update=relative)}))


def variables(config: Config) -> dict[str, str]:
    """Plain environment variables of every node. Raises UserError where runs would stay on a node's own disk."""
    uri = config.tracking.uri
    if uri is None and "MLFLOW_TRACKING_URI" not in {**config.engine.env, **config.engine.secrets}:
        raise UserError(
            "tracking.uri: a job on other machines needs the address of an MLflow server; set it, or "
            "engine.env.MLFLOW_TRACKING_URI"
        )
    return dict(config.engine.env)


def accelerators(config: Config) -> int:
    """GPUs of each node."""
    return config.compute.num_processes if config.compute.device == "cuda" else 0


def image(config: Config) -> str:
    """The container image. Raises UserError where none is named."""
    if config.engine.image is None:
        raise UserError(f"engine.image: required by engine={config.engine.name}: an image with the project in it")
    return config.engine.image


def name(config: Config) -> str:
    """The job's name, as Kubernetes takes it."""
    words = f"{config.job.stage}-{config.task.name}-{config.model.name}".lower()
    return "".join(sign if sign.isalnum() else "-" for sign in words)[:50].strip("-")


def shown(variables: Mapping[str, str]) -> list[dict[str, str]]:
    """Variables as a container lists them."""
    return [{"name": name, "value": value} for name, value in sorted(variables.items())]
