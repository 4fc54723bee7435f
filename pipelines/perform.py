"""How a stage is run: reused where nothing changed, else made in a run of its own and published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import product as products
from pipelines.config.compose import as_yaml
from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.product import Product
from pipelines.progress import say
from pipelines.stages import Stage, fingerprint_of, place
from pipelines.tracking.run import Run, find_finished, flatten, started


def run_stage(stage: Stage, config: Config, inputs: dict[str, Product]) -> Product:
    """The stage's product: found where an equal one was made, else made in a run of its own."""
    fingerprint = fingerprint_of(stage, config, inputs)
    folder = place(stage, config, fingerprint)
    found = _reusable(stage, config, folder) if config.reuse else None
    if found:
        say(f"{stage.name}: reused from run {found.run_id} ({_shown(folder)})")
        with started(stage.name, {"stage": stage.name, "reused_from": found.run_id}):
            return found
    say(f"{stage.name}: started")
    work = products.partial(folder)
    # What a stage's `check` left there is this attempt's own.
    if not config.reuse and not hasattr(stage.module, "check"):
        products.discard(work)
    with started(stage.name, {"stage": stage.name, "fingerprint": fingerprint}) as run:
        made = _make(stage, config, inputs, work, run)
        if stage.kind == "adapter":
            made["teachers"] = teachers_of(made, inputs)
        made_by = {"run_id": run.id, "stage": stage.name, "fingerprint": fingerprint}
        product = products.publish(work, folder, stage.kind, made_by, made)
        run.tags({"product.kind": product.kind, "product.digest": product.digest, "product.folder": folder})
        run.file(product.file(products.MANIFEST))
    say(f"{stage.name}: done, {_shown(folder)} (run {run.id})")
    return product


def teachers_of(made: Mapping[str, Any], inputs: Mapping[str, Product]) -> list[dict[str, Any]]:
    """Whoever was learnt from on the way to a product: its own teacher, and those of what it was made of."""
    abouts = [made, *(given.about for given in inputs.values())]
    named = [teacher for about in abouts for teacher in (about.get("teacher"), *about.get("teachers", [])) if teacher]
    return [teacher for number, teacher in enumerate(named) if teacher not in named[:number]]


def _make(stage: Stage, config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    run.params(flatten({"seed": config.seed, **config.model_dump(include=set(stage.blocks))}))
    run.data(as_yaml(config), "config.yaml")
    run.tags({f"input.{name}": given.digest for name, given in inputs.items()})
    with run.system_metrics(config.tracking.system_metrics):
        made: dict[str, Any] = stage.module.run(config, inputs, work, run)
    return made


def _reusable(stage: Stage, config: Config, folder: Path) -> Product | None:
    """The product in `folder` if it is whole, its run ended well, and the world outside still agrees."""
    if not (folder / products.MANIFEST).exists():
        return None
    try:
        found = products.load(folder)
    except UserError as error:
        say(f"{stage.name}: made anew, because {error}")
        return None
    current = getattr(stage.module, "is_current", None)
    return found if find_finished(found.run_id) and (current is None or current(config, found)) else None


def _shown(folder: Path) -> str:
    return str(folder.relative_to(resolve("."))) if folder.is_relative_to(resolve(".")) else str(folder)
