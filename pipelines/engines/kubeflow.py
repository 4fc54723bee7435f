"""A TrainJob of Kubeflow Trainer 2, whose runtime's torch policy tells each node who it is."""

from pathlib import Path
from typing import Any

import yaml

from pipelines.config.schema import Config
from pipelines.engines import command, pods
from pipelines.errors import UserError

# What the torch policy sets in every node's environment.
PLACE = command.Place("$PET_NODE_RANK", "$PET_MASTER_ADDR")
NODE = "node"  # of the job and of its container in the runtimes that come with Kubeflow Trainer


def files(config: Config, folder: Path) -> dict[str, str]:
    """`job.yaml`: the configuration's ConfigMap and the TrainJob."""
    return {"job.yaml": yaml.safe_dump_all([pods.config_map(config), _train_job(config)], sort_keys=False)}


def _train_job(config: Config) -> dict[str, Any]:
    if config.engine.runtime is None:
        raise UserError("engine.runtime: required: a ClusterTrainingRuntime with the torch policy")
    line = command.shell(config, PLACE, f"{pods.CONFIG_FOLDER}/{command.RESOLVED}")
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": command.name(config), "namespace": pods.namespace(config)},
        "spec": {
            "runtimeRef": {"kind": "ClusterTrainingRuntime", "name": config.engine.runtime},
            "trainer": {
                "image": command.image(config),
                "command": ["bash", "-c", line],
                "env": pods.environment(config),
                "numNodes": config.compute.num_nodes,
                # One agent on each node, which starts its processes itself.
                "numProcPerNode": 1,
                "resourcesPerNode": pods.resources(config),
            },
            "runtimePatches": [{"manager": "tunesmith.dev/job", "trainingRuntimeSpec": _volumes_patch(config)}],
        },
    }


def _volumes_patch(config: Config) -> dict[str, Any]:
    container = {"name": NODE, "volumeMounts": pods.mounts(config)}
    pod = {"spec": {"volumes": pods.volumes(config), "containers": [container]}}
    job = {"name": NODE, "template": {"spec": {"template": pod}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}
