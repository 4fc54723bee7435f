"""What Kubernetes' engines share: the container's resources, its volumes, and the configuration that it mounts."""

from typing import Any

from pipelines.config.schema import Config
from pipelines.engines import command

CONFIG_FOLDER = "/etc/tunesmith"


def namespace(config: Config) -> str:
    """Where in the cluster the job lives."""
    return config.engine.namespace or "default"


def resources(config: Config) -> dict[str, Any]:
    """Requests and limits of one node."""
    engine = config.engine
    asked = {"cpu": str(engine.cpus), "memory": f"{engine.memory_gb:g}Gi"}
    gpus = command.accelerators(config)
    limits = {"memory": asked["memory"], **({engine.accelerator: str(gpus)} if gpus else {})}
    return {"requests": asked | limits, "limits": limits}


def environment(config: Config) -> list[dict[str, Any]]:
    """Plain variables, and those that a Secret holds."""
    held = []
    for variable, reference in sorted(config.engine.secrets.items()):
        secret, key = reference.split("/")
        held.append({"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return [*command.shown(command.variables(config)), *held]


def volumes(config: Config) -> list[dict[str, Any]]:
    """The configuration, the storage that all nodes share, and memory for processes to exchange."""
    engine = config.engine
    found: list[dict[str, Any]] = [{"name": "config", "configMap": {"name": command.name(config)}}]
    if engine.claim:
        found.append({"name": "data", "persistentVolumeClaim": {"claimName": engine.claim}})
    if engine.shared_memory_gb:
        size = f"{engine.shared_memory_gb:g}Gi"
        found.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
    return found


def mounts(config: Config) -> list[dict[str, Any]]:
    """Where the volumes lie in the container."""
    places = {"config": CONFIG_FOLDER, "data": config.engine.mount, "shared-memory": "/dev/shm"}
    return [{"name": volume["name"], "mountPath": places[volume["name"]]} for volume in volumes(config)]


def config_map(config: Config) -> dict[str, Any]:
    """The resolved configuration as Kubernetes keeps it."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": command.name(config), "namespace": namespace(config)},
        "data": {command.RESOLVED: command.moved(config)},
    }
