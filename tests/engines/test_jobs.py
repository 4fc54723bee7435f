"""Jobs for engines: what is written is what the engine's own published types take, and says what was composed."""

import json
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models as published
from mlflow.projects.kubernetes import _get_kubernetes_job_definition

from pipelines.config.compose import compose, load_resolved
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Config
from pipelines.engines import kubeflow, kubernetes, skypilot
from pipelines.errors import UserError

GIVEN = (
    "compute=gpu_80gb",
    "compute.num_processes=8",
    "compute.num_nodes=2",
    "engine.image=registry.example/tunesmith:1.0",
    "tracking.uri=http://mlflow.example:5000",
    "+engine.secrets.HF_TOKEN=hub/token",
    "+engine.env.NCCL_DEBUG=WARN",
)
TYPES = {
    "Job": published.IoK8sApiBatchV1Job,
    "Service": published.IoK8sApiCoreV1Service,
    "ConfigMap": published.IoK8sApiCoreV1ConfigMap,
    "TrainJob": published.TrainerV1alpha1TrainJob,
}


def composed(*overrides: str) -> Config:
    return compose([*GIVEN, *overrides]).config


def documents(text: str) -> dict[str, dict[str, Any]]:
    return {found["kind"]: found for found in yaml.safe_load_all(text)}


def check_published(document: dict[str, Any]) -> None:
    """Types, required fields, and no field that the engine doesn't know: those would be dropped on the way."""
    kind = TYPES[document["kind"]]
    assert kind.from_dict(document).to_dict() == document


@pytest.mark.parametrize("nodes", [1, 2])
def test_kubernetes(nodes: int, tmp_path: Path) -> None:
    config = composed(f"compute.num_nodes={nodes}", "engine=kubernetes")
    found = documents(kubernetes.files(config, tmp_path)["job.yaml"])
    assert set(found) == {"ConfigMap", "Service", "Job"}
    for document in found.values():
        check_published(document)
    job, service = found["Job"]["spec"], found["Service"]["spec"]
    assert job["completions"] == job["parallelism"] == nodes
    pod = job["template"]
    # The Service finds the first pod by labels that it has: its own and the one that indexed Jobs give.
    assert service["selector"] == {**pod["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": "0"}
    container = pod["spec"]["containers"][0]
    variables = {entry["name"]: entry for entry in container["env"]}
    assert ("MASTER_ADDR" in variables) == (nodes > 1)
    assert variables["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_the_job_carries_what_was_composed(tmp_path: Path) -> None:
    config = composed("engine=kubernetes", "job.stage=grpo", "seed=7")
    found = documents(kubernetes.files(config, tmp_path)["job.yaml"])
    container = found["Job"]["spec"]["template"]["spec"]["containers"][0]
    name = Path(container["command"][-1]).name
    place = tmp_path / name
    place.write_text(found["ConfigMap"]["data"][name])
    carried = load_resolved(str(place)).config
    assert carried.seed == 7
    assert carried.paths.adapters == "/tunesmith-data/adapters"
    assert carried.model_copy(update={"paths": config.paths}) == config
    assert container["command"][:4] == ["python", "-m", "pipelines", "grpo"]


def test_what_mlflow_makes_of_the_template(tmp_path: Path) -> None:
    """MLflow's Kubernetes backend names the Job anew and puts its image, command and variables in."""
    files = kubernetes.files(composed("engine=kubernetes"), tmp_path)
    backend, project = json.loads(files["kubernetes_config.json"]), yaml.safe_load(files["MLproject"])
    assert backend["repository-uri"] == "registry.example/tunesmith"
    command = project["entry_points"]["main"]["command"].split()
    job = _get_kubernetes_job_definition(
        "tunesmith", "image", "sha256:1", command, {"MLFLOW_RUN_ID": "1"}, yaml.safe_load(files["job_template.yaml"])
    )
    job.pop("status", None)
    check_published(job)
    service = documents(files["shared.yaml"])["Service"]
    assert service["spec"]["selector"].items() >= job["spec"]["template"]["metadata"]["labels"].items()
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert {"MASTER_ADDR", "MLFLOW_RUN_ID"} <= {entry["name"] for entry in container["env"]}


def test_kubeflow(tmp_path: Path) -> None:
    found = documents(kubeflow.files(composed("engine=kubeflow"), tmp_path)["job.yaml"])
    for document in found.values():
        check_published(document)
    trainer = found["TrainJob"]["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 1)
    assert 'NODE_RANK="$PET_NODE_RANK"' in trainer["command"][2]


def test_skypilots_line_tells_the_node(tmp_path: Path) -> None:
    task = yaml.safe_load(skypilot.files(composed("engine=skypilot", "engine.claim=data"), tmp_path)["task.yaml"])
    line = task["run"].replace("exec env", "env").partition(" python ")[0].partition("activate && ")[2]
    told = subprocess.run(
        ["bash", "-c", f"{line} bash -c 'echo $NODE_RANK $MASTER_ADDR'"],
        env={"PATH": "/usr/bin:/bin", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["1", "10.0.0.1"]


@pytest.mark.slow
def test_skypilot_itself_takes_the_task(tmp_path: Path) -> None:
    """In an environment of its own: SkyPilot pins what this project doesn't."""
    files = skypilot.files(composed("engine=skypilot", "engine.claim=data"), tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "skypilot>=0.14.1,<0.15"], check=True, capture_output=True)
    code = (
        "import sky, sys; task = sky.Task.from_yaml(sys.argv[1]); "
        "print(task.num_nodes, [str(r.accelerators) for r in task.resources])"
    )
    environment = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "HF_TOKEN": "x",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }
    done = subprocess.run(
        [python, "-c", code, "task.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "2 [\"{'H100': 8}\"]"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine=kubernetes", "engine.image=null"], "engine.image: required by engine=kubernetes"),
        (["engine=kubernetes", "tracking.uri=null"], "tracking.uri: a job on other machines needs"),
        (["engine=kubernetes", "engine.claim=null"], "engine.claim: required with compute.num_nodes over 1"),
        (["engine=kubeflow", "engine.runtime=null"], "engine.runtime: required"),
        (["engine=kubeflow", "+engine.secrets.API=token"], "engine: secrets.API: expected secret/key"),
    ],
)
def test_what_a_job_lacks(overrides: Sequence[str], said: str, tmp_path: Path) -> None:
    kinds = {"kubernetes": kubernetes, "kubeflow": kubeflow}
    with pytest.raises(UserError, match=said):
        kinds[overrides[0].partition("=")[2]].files(composed(*overrides), tmp_path)


def test_the_stage_writes_the_files_and_says_how(tmp_path: Path) -> None:
    """Of a model that is on the Hub alone: nothing of it is looked for here."""
    command = [str(PROJECT / ".venv/bin/python"), "-m", "pipelines", "job", *GIVEN, "job.stage=sft", "model=qwen3_8b"]
    command += ["engine=kubernetes", f"paths.outputs={tmp_path}", f"tracking.uri=sqlite:///{tmp_path}/m.db"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    starts = next(line for line in done.stdout.splitlines() if "kubectl apply" in line)
    assert Path(starts.split()[-1]).is_file()
