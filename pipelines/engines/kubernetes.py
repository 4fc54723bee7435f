"""An indexed Job: a pod for each node, and a headless Service by which they find the first one.

The Service chooses by the label that Kubernetes gives each pod of an indexed Job, not by the Job's name, which
`mlflow run` replaces (Kubernetes documentation, "Indexed Job for Parallel Processing with Static Work Assignment").
"""

import json
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.schema import Config
from pipelines.engines import command, pods

INDEX = "batch.kubernetes.io/job-completion-index"


def files(config: Config, folder: Path) -> dict[str, str]:
    """`job.yaml` for kubectl, and what `mlflow run --backend kubernetes` reads: template, backend file and project.

    Where MLflow starts the Job, `shared.yaml` has to be applied before: it replaces the Job alone.
    """
    job, shared = _job(config), [pods.config_map(config), _service(config)]
    backend = {
        "kube-job-template-path": str(folder / "job_template.yaml"),
        "repository-uri": command.image(config).partition("@")[0].rsplit(":", 1)[0],
    }
    project = {
        "name": command.name(config),
        "docker_env": {"image": command.image(config)},
        "entry_points": {"main": {"command": " ".join(_line(config))}},
    }
    return {
        "job.yaml": yaml.safe_dump_all([*shared, job], sort_keys=False),
        "shared.yaml": yaml.safe_dump_all(shared, sort_keys=False),
        "job_template.yaml": yaml.safe_dump(job, sort_keys=False),
        "kubernetes_config.json": json.dumps(backend, indent=1) + "\n",
        "MLproject": yaml.safe_dump(project, sort_keys=False),
    }


def _line(config: Config) -> list[str]:
    """Without a shell: `mlflow run` quotes its words again."""
    return ["python", "-m", "pipelines", config.job.stage, "--resolved", f"{pods.CONFIG_FOLDER}/{command.RESOLVED}"]


def _job(config: Config) -> dict[str, Any]:
    name, nodes = command.name(config), config.compute.num_nodes
    # The node's number is in JOB_COMPLETION_INDEX, which the launcher reads.
    meets = {"MASTER_ADDR": name, "MASTER_PORT": str(config.engine.port)} if nodes > 1 else {}
    container = {
        "name": "tunesmith",
        "image": command.image(config),
        "workingDir": config.engine.folder,
        "command": _line(config),
        "env": [*command.shown(meets), *pods.environment(config)],
        "resources": pods.resources(config),
        "volumeMounts": pods.mounts(config),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": pods.namespace(config)},
        "spec": {
            "completions": nodes,
            "parallelism": nodes,
            "completionMode": "Indexed",
            "backoffLimit": 0,  # a node that comes back alone would wait for the others for ever
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [container],
                    "volumes": pods.volumes(config),
                },
            },
        },
    }


def _service(config: Config) -> dict[str, Any]:
    name = command.name(config)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": pods.namespace(config)},
        "spec": {
            "clusterIP": "None",
            "selector": {"app": name, INDEX: "0"},
            "publishNotReadyAddresses": True,  # the nodes meet before they are ready
            "ports": [{"name": "rendezvous", "port": config.engine.port, "protocol": "TCP"}],
        },
    }
