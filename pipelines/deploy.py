"""version -> the files that serve it elsewhere: Dockerfile with its context, Kubernetes manifests, commands."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.paths import PROJECT
from pipelines.config.schema import Adapter, Compute, Config, Model
from pipelines.engines import command
from pipelines.policy.base import local_folder
from pipelines.policy.served import completed
from pipelines.product import Product
from pipelines.progress import say
from pipelines.serving import commands, image, manifests, vllm
from pipelines.serving.resources import needs
from pipelines.serving.versions import bring, check_loadable
from pipelines.tracking import registry
from pipelines.tracking.run import Run


def unneeded(config: Config) -> tuple[str, ...]:
    """A model named by URI needs no version of this configuration."""
    return ("version",) if config.deploy.model else ()


def is_current(config: Config, found: Product) -> bool:
    """Whether an alias still leads to the version that the files are for."""
    uri = config.deploy.model
    return uri is None or registry.find(uri, "deploy.model").uri == found.about["version"]


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Writes the files, and says how they are used. Raises Refused where the engine can't load the version."""
    made = inputs["version"].about if "version" in inputs else None
    version = registry.named(config.deploy.model, "deploy.model", made)
    if config.deploy.engine == "vllm" and (unsure := check_loadable(version)):
        say(f"  {unsure}")
    brought = bring(version, work / "verified")
    settings = completed(brought.placed.settings)
    config = _of_version(config, settings)
    adapter = work / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    shutil.copytree(brought.placed.adapter, adapter)
    shutil.rmtree(work / "verified")
    uri, name = config.deploy.model or version.uri, manifests.label(version.name)
    asked = needs(config)
    documents = manifests.documents(config, uri, name, asked)
    (work / "kubernetes.yaml").write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
    base = local_folder(config.model)
    image.write_context(work, base, config.deploy.engine)
    written = image.dockerfile(config.deploy.engine, base is not None, config.deploy.port)
    (work / "Dockerfile").write_text(written, encoding="utf-8")
    started = _started(config, work)
    released = commands.Released(
        version.name, uri, config.model, config.adapter, config.compute.dtype, vllm.rank_of(adapter), config.deploy.port
    )
    own = ["vllm", "serve", *vllm.arguments(settings, {version.name: adapter}, []), "--port", str(config.deploy.port)]
    here = [word.replace(str(adapter), "adapter") for word in own]
    (work / "commands.md").write_text(commands.page(released, here, started), encoding="utf-8")
    for file in ("Dockerfile", "kubernetes.yaml", "commands.md"):
        run.file(work / file)
    say(f"  {uri} by {config.deploy.engine}: {asked.memory_gib} GiB of memory and {asked.gpus} GPUs a pod")
    for line in started.values():
        say(f"  {line}")
    return {"version": version.uri, "engine": config.deploy.engine, "memory_gib": asked.memory_gib, "gpus": asked.gpus}


def _of_version(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with the version's base, adapter and machine in place of its own."""
    return config.model_copy(
        update={
            "model": Model.model_validate(settings["model"]),
            "adapter": Adapter.model_validate(settings["adapter"]),
            "compute": Compute.model_validate(settings["compute"]),
        }
    )


def _started(config: Config, work: Path) -> dict[str, str]:
    """What a user types, from the project's folder."""
    folder = work.with_name(work.name.removesuffix(".partial"))
    folder = folder.relative_to(PROJECT) if folder.is_relative_to(PROJECT) else folder
    tag = command.image(config)
    return {
        "image": f"docker build -t {tag} {folder} && docker push {tag}",
        "cluster": f"kubectl apply -f {folder}/kubernetes.yaml",
    }
