"""The files by which Kubernetes runs `serve`: Deployment, Service and an autoscaler that looks at the queue."""

from collections.abc import Mapping
from typing import Any

from pipelines.config.schema import Config
from pipelines.engines import command, pods
from pipelines.errors import UserError
from pipelines.serving.resources import Needs

# What tells how many requests wait: the engine's own name of it, and the one that Prometheus' adapter gives it.
DEPTH = {
    "transformers": ("tunesmith_queue_depth", "tunesmith_queue_depth"),
    "vllm": ("vllm:num_requests_waiting", "vllm_num_requests_waiting"),
}
HEALTH = {"mlflow": "/ping", "transformers": "/health", "vllm": "/health"}
CPU_PERCENT = 80  # at which MLflow's server, which tells no queue, gets a pod more
STARTS_WITHIN_S = 1800  # a base may have to be fetched before the first answer
SCRATCH = "/scratch"


def documents(config: Config, uri: str, name: str, needs: Needs) -> list[dict[str, Any]]:
    """All of them, in the order in which they are applied."""
    found = [_deployment(config, uri, name, needs), _service(config, name)]
    if config.deploy.autoscaler == "hpa":
        found.append(_hpa(config, name))
    if config.deploy.autoscaler == "keda":
        found.append(_keda(config, name))
    return found


def label(name: str) -> str:
    """A registered model's name as Kubernetes takes it."""
    return "".join(sign if sign.isalnum() else "-" for sign in name.lower())[:50].strip("-")


def arguments(config: Config, uri: str) -> list[str]:
    """What follows `serve` in the pod."""
    deploy = config.deploy
    return [
        f"model={uri}",
        f"engine={deploy.engine}",
        "host=0.0.0.0",
        f"port={deploy.port}",
        f"paths.outputs={SCRATCH}",
    ]


def _head(config: Config, kind: tuple[str, str], name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": pods.namespace(config), "labels": {"app": name}}
    return {"apiVersion": kind[0], "kind": kind[1], "metadata": metadata}


def _variables(config: Config) -> list[dict[str, Any]]:
    """Plain ones and those of Secrets. Raises UserError where pods couldn't reach the registry."""
    uri = config.tracking.uri or ""
    known = {**config.engine.env, **config.engine.secrets}
    if not uri.startswith(("http://", "https://")) and "MLFLOW_TRACKING_URI" not in known:
        raise UserError(
            "tracking.uri: pods need the address of an MLflow server; set it, or engine.env.MLFLOW_TRACKING_URI"
        )
    held = [one for one in pods.environment(config) if one["name"] != "MLFLOW_TRACKING_URI"]
    plain = command.shown({"MLFLOW_TRACKING_URI": uri}) if "MLFLOW_TRACKING_URI" not in known else []
    kept = [one for one in pods.environment(config) if one["name"] == "MLFLOW_TRACKING_URI"]
    return [*plain, *kept, *held]


def _deployment(config: Config, uri: str, name: str, needs: Needs) -> dict[str, Any]:
    deploy = config.deploy
    memory = f"{needs.memory_gib}Gi"
    limits = {"memory": memory, **({config.engine.accelerator: str(needs.gpus)} if needs.gpus else {})}
    alive = {"httpGet": {"path": HEALTH[deploy.engine], "port": deploy.port}}
    container = {
        "name": "serve",
        "image": command.image(config),
        "args": arguments(config, uri),
        "env": _variables(config),
        "ports": [{"name": "http", "containerPort": deploy.port, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": str(config.engine.cpus), **limits}, "limits": limits},
        # It answers only once it has given the recorded answers again.
        "startupProbe": {**alive, "periodSeconds": 10, "failureThreshold": STARTS_WITHIN_S // 10},
        "readinessProbe": {**alive, "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {**alive, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 1000},
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
    }
    template = {
        "metadata": {"labels": {"app": name}, "annotations": _scraped(deploy.port)},
        "spec": {
            "terminationGracePeriodSeconds": 60,
            "containers": [container],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    }
    spec = {"replicas": deploy.least, "selector": {"matchLabels": {"app": name}}, "template": template}
    if deploy.autoscaler:
        del spec["replicas"]  # the autoscaler's
    return {**_head(config, ("apps/v1", "Deployment"), name), "spec": spec}


def _scraped(port: int) -> dict[str, str]:
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}


def _service(config: Config, name: str) -> dict[str, Any]:
    ports = [{"name": "http", "port": config.deploy.port, "targetPort": "http", "protocol": "TCP"}]
    return {**_head(config, ("v1", "Service"), name), "spec": {"selector": {"app": name}, "ports": ports}}


def _target(name: str) -> Mapping[str, str]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}


def _hpa(config: Config, name: str) -> dict[str, Any]:
    deploy = config.deploy
    if deploy.engine == "mlflow":
        target = {"type": "Utilization", "averageUtilization": CPU_PERCENT}
        metric: dict[str, Any] = {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    else:
        target = {"type": "AverageValue", "averageValue": str(deploy.queue_depth)}
        metric = {"type": "Pods", "pods": {"metric": {"name": DEPTH[deploy.engine][1]}, "target": target}}
    spec = {
        "scaleTargetRef": dict(_target(name)),
        "minReplicas": deploy.least,
        "maxReplicas": deploy.most,
        "metrics": [metric],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
    }
    return {**_head(config, ("autoscaling/v2", "HorizontalPodAutoscaler"), name), "spec": spec}


def _keda(config: Config, name: str) -> dict[str, Any]:
    """KEDA asks the pods themselves (its scaler metrics-api, format prometheus)."""
    deploy = config.deploy
    where = f"http://{name}.{pods.namespace(config)}.svc.cluster.local:{deploy.port}/metrics"
    trigger = {
        "type": "metrics-api",
        "metadata": {
            "url": where,
            "format": "prometheus",
            "valueLocation": DEPTH[deploy.engine][0],
            "targetValue": str(deploy.queue_depth),
            "aggregateFromKubeServiceEndpoints": "true",
        },
    }
    spec = {
        "scaleTargetRef": {"name": name},
        "minReplicaCount": deploy.least,
        "maxReplicaCount": deploy.most,
        "triggers": [trigger],
    }
    return {**_head(config, ("keda.sh/v1alpha1", "ScaledObject"), name), "spec": spec}
