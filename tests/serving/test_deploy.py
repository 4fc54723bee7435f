"""`deploy`: manifests that Kubernetes' published types take, an image whose steps work, documented flags."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes.client as published
import pytest
import yaml

from pipelines.__main__ import parse
from pipelines.config.compose import compose
from pipelines.serving import commands, manifests, resources
from tests.conftest import World
from tests.serving.conftest import Released

GIVEN = ("engine.image=registry.example/tunesmith:1.0", "tracking.uri=http://mlflow.example:5000")
TYPES = {
    "Deployment": published.V1Deployment,
    "Service": published.V1Service,
    "HorizontalPodAutoscaler": published.V2HorizontalPodAutoscaler,
}


def check_published(value: Any, kind: Any) -> None:
    """Every field is one that the published type has, and holds what that type says."""
    if hasattr(kind, "openapi_types"):
        names = {told: name for name, told in kind.attribute_map.items()}
        assert set(value) <= set(names), (kind.__name__, set(value) - set(names))
        # The constructor refuses what is required and absent.
        kind(**{names[told]: held for told, held in value.items()})
        for told, held in value.items():
            check_published(held, _type(kind.openapi_types[names[told]]))
    elif isinstance(kind, tuple):
        assert isinstance(value, list if kind[0] == "list" else dict), value
        for held in list(value) if isinstance(value, list) else list(value.values()):
            check_published(held, kind[1])
    elif kind is not object:
        assert isinstance(value, kind), (value, kind)


def _type(told: str) -> Any:
    if told.startswith(("list[", "dict(")):
        return told[:4], _type(told[5:-1].removeprefix("str, "))
    plain = {"str": str, "int": int, "bool": bool, "object": object, "float": float, "datetime": object}
    return plain[told] if told in plain else getattr(published, told)


@pytest.mark.parametrize("engine", ["transformers", "vllm", "mlflow"])
def test_manifests_are_what_kubernetes_takes(engine: str) -> None:
    given = [*GIVEN, f"deploy.engine={engine}", "+engine.secrets.HF_TOKEN=hub/token", "deploy.most=9"]
    config = compose([*given, "model=qwen3_8b", "compute=gpu_80gb"]).config
    found = {one["kind"]: one for one in manifests.documents(config, "models:/x@live", "x", resources.needs(config))}
    assert set(found) == set(TYPES)
    for kind, document in found.items():
        check_published(document, TYPES[kind])
    deployment, service, scaler = (
        found["Deployment"]["spec"],
        found["Service"]["spec"],
        found["HorizontalPodAutoscaler"],
    )
    labels = deployment["template"]["metadata"]["labels"]
    assert labels == deployment["selector"]["matchLabels"] == service["selector"]
    container = deployment["template"]["spec"]["containers"][0]
    variables = {one["name"]: one for one in container["env"]}
    assert variables["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert variables["MLFLOW_TRACKING_URI"]["value"] == "http://mlflow.example:5000"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["livenessProbe"]["httpGet"]["port"] == container["ports"][0]["containerPort"]
    (metric,) = scaler["spec"]["metrics"]
    told = metric["resource"]["name"] if engine == "mlflow" else metric["pods"]["metric"]["name"]
    expected = {"transformers": "tunesmith_queue_depth", "vllm": "vllm_num_requests_waiting", "mlflow": "cpu"}
    assert told == expected[engine]
    assert scaler["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    # What the pod runs is a command of ours.
    command = parse(["serve", *container["args"]])
    assert compose(command.overrides).config.serve.engine == engine


def test_the_checker_refuses_what_is_no_manifest() -> None:
    config = compose([*GIVEN, "model=qwen3_8b"]).config
    service = manifests.documents(config, "models:/x/1", "x", resources.needs(config))[1]
    service["spec"]["prots"] = service["spec"].pop("ports")
    with pytest.raises(AssertionError):
        check_published(service, TYPES["Service"])


def test_keda_reads_the_depth_from_the_pods() -> None:
    config = compose([*GIVEN, "deploy.autoscaler=keda", "deploy.queue_depth=7", "model=qwen3_8b"]).config
    scaled = manifests.documents(config, "models:/x/1", "x", resources.needs(config))[-1]
    (trigger,) = scaled["spec"]["triggers"]
    assert (scaled["kind"], trigger["type"]) == ("ScaledObject", "metrics-api")
    assert trigger["metadata"]["valueLocation"] == "tunesmith_queue_depth"
    assert trigger["metadata"]["targetValue"] == "7"


def test_more_is_needed_for_more() -> None:
    """The weights of an 8B model in bfloat16 take 15.3 GiB; 4 bit takes a third; eight whole contexts more than one."""
    card = ["model=qwen3_8b", "compute=gpu_80gb", "deploy.engine=vllm"]
    whole = resources.needs(compose(card).config).on_gpus
    small = resources.needs(compose([*card, "adapter=qlora"]).config).on_gpus
    alone = resources.needs(compose([*card, "deploy.concurrency=1"]).config).on_gpus
    assert 15.3 * 2**30 < alone < whole
    assert small < whole - 8 * 2**30
    two = resources.needs(compose([*card, "model=llama_3_3_70b", "deploy.concurrency=1"]).config)
    assert two.gpus > 1


def test_files_of_a_version(released: Released, tmp_path: Path, finished: World) -> None:
    """And the image's steps that need no network, carried out in a folder: what is copied there can serve."""
    from pipelines import __main__ as launcher

    given = [f"tracking.uri={released.store}", f"paths.outputs={tmp_path}", "engine.image=registry.example/served:1"]
    given.append("+engine.env.MLFLOW_TRACKING_URI=http://mlflow.example:5000")
    assert launcher.run(["deploy", f"model={released.first.uri}", "port=9000", *given]) == 0
    (manifest,) = (tmp_path / "deployment").glob("*/manifest.json")
    folder = manifest.parent
    for document in yaml.safe_load_all((folder / "kubernetes.yaml").read_text()):
        check_published(document, TYPES[document["kind"]])
    steps = [line.split(maxsplit=1) for line in (folder / "Dockerfile").read_text().splitlines()]
    assert steps[0][0] == "FROM"
    assert {word for word, _ in steps} <= {"FROM", "RUN", "WORKDIR", "ENV", "COPY", "USER", "EXPOSE", "ENTRYPOINT"}
    image = tmp_path / "image"
    image.mkdir()
    for word, rest in steps:
        if word == "COPY":
            source, target = rest.split()
            command = ["cp", "-r", f"{folder}/{source}" + ("." if source.endswith("/") else ""), str(image / target)]
            if source.endswith("/"):
                (image / target).mkdir(parents=True)
            subprocess.run(command, check=True)
    entry = json.loads(next(rest for word, rest in steps if word == "ENTRYPOINT"))
    container = next(yaml.safe_load_all((folder / "kubernetes.yaml").read_text()))["spec"]["template"]["spec"]
    arguments = container["containers"][0]["args"]
    shown = subprocess.run(
        [sys.executable, *entry[1:], *arguments, "--cfg", "job"], cwd=image, capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(shown.stdout)["serve"]["port"] == 9000
    assert (image / "base" / "model.safetensors").is_file()
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    text = (folder / "commands.md").read_text()
    assert str(tmp_path / "deployment") not in text.partition("## Image")[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine.image=null"], "engine.image: required"),
        (["tracking.uri=sqlite:///x.db"], "tracking.uri: pods need the address of an MLflow server"),
    ],
)
def test_what_pods_lack(overrides: list[str], said: str) -> None:
    from pipelines.errors import UserError

    config = compose([*GIVEN, *overrides, "model=qwen3_8b"]).config
    with pytest.raises(UserError, match=said):
        manifests.documents(config, "models:/x/1", "x", resources.needs(config))


def test_flags_of_others_are_those_that_they_document() -> None:
    """SGLang's server arguments and text-generation-launcher's reference; a mistyped flag would start nothing."""
    model = compose(["model=qwen3_8b"]).config.model.model_copy(update={"revision": "0" * 40})
    for adapter in ("lora", "qlora"):
        made = compose(["model=qwen3_8b", f"adapter={adapter}"]).config.adapter
        version = commands.Released("support", "models:/support/3", model, made, "bfloat16", 16, 8000)
        for line, known in ((commands.sglang(version), commands.SGLANG), (commands.tgi(version), commands.TGI)):
            given = [word for word in line if word.startswith("--")]
            assert set(given) <= set(known)
            assert {"--revision", "--port"} <= set(given)
    assert "support=adapter" in commands.tgi(version)
    assert commands.sglang(version)[commands.sglang(version).index("--lora-paths") + 1] == "support=adapter"
    assert shlex.split(commands.page(version, ["vllm", "serve"], {}).split("```sh\n")[1].split("\n```")[0])[:3] == [
        "python",
        "-m",
        "pipelines",
    ]
