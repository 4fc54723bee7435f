"""A task for `sky launch`, which runs the same line on every node."""

from pathlib import Path
from typing import Any

import yaml

from pipelines.config.schema import Config
from pipelines.engines import command

PLACE = command.Place("$SKYPILOT_NODE_RANK", '$(echo "$SKYPILOT_NODE_IPS" | head -n1)')
RESOLVED = "/tmp/tunesmith-config.yaml"


def files(config: Config, folder: Path) -> dict[str, str]:
    """`task.yaml`, and the configuration in `folder` that it takes to every node."""
    engine = config.engine
    resources: dict[str, Any] = {"cpus": f"{engine.cpus}+", "memory": f"{engine.memory_gb:g}+"}
    if gpus := command.accelerators(config):
        resources["accelerators"] = f"{engine.accelerator}:{gpus}"
    if engine.image:
        resources["image_id"] = f"docker:{engine.image}"
    task: dict[str, Any] = {
        "name": command.name(config),
        "num_nodes": config.compute.num_nodes,
        "resources": resources,
        "workdir": ".",
        "file_mounts": {RESOLVED: str(folder / command.RESOLVED)},
        "envs": command.variables(config),
        "secrets": dict.fromkeys(engine.secrets),
        "setup": "make setup",
        "run": command.shell(config, PLACE, RESOLVED, before=". .venv/bin/activate && "),
    }
    if engine.claim:
        task["volumes"] = {engine.mount: engine.claim}
    told = {key: value for key, value in task.items() if value not in ({}, None)}
    return {"task.yaml": yaml.safe_dump(told, sort_keys=False), command.RESOLVED: command.moved(config)}
