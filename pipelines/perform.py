"""How a stage is run: reused where nothing changed, else made in a run of its own and published."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines import product as products
from pipelines.compute import launch
from pipelines.config.compose import as_yaml
from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.contract import terms
from pipelines.errors import UserError
from pipelines.holding import Hold, held
from pipelines.product import Product
from pipelines.progress import say
from pipelines.resume import bring
from pipelines.stages import Stage, fingerprint_of, place
from pipelines.tracking.kept import Kept
from pipelines.tracking.run import Run, find_finished, flatten, is_child_of_open, started


def run_stage(stage: Stage, config: Config, inputs: dict[str, Product]) -> Product:
    """The stage's product: found where an equal one was made, else made in a run of its own.

    Raises UserError naming the holder where another start is making it.
    """
    fingerprint = fingerprint_of(stage, config, inputs)
    folder = place(stage, config, fingerprint)
    if found := _found(stage, config, folder):
        return found
    with held(folder) as hold:
        kept = Kept(folder, config.tracking.patience_s)
        _end_late(stage, folder, kept)
        if found := _found(stage, config, folder):
            return found
        if not config.reuse:
            kept.forget()
        return _made_anew(stage, config, inputs, (folder, fingerprint), kept, hold)


def _made_anew(
    stage: Stage, config: Config, inputs: dict[str, Product], to: tuple[Path, str], kept: Kept, hold: Hold
) -> Product:
    folder, fingerprint = to
    say(f"{stage.name}: started")
    work = products.partial(folder)
    # What a stage's `check` left there is this attempt's own.
    if not config.reuse and not hasattr(stage.module, "check"):
        products.discard(work)
    if config.resume and stage.kind == "adapter":
        bring(config.resume, work, terms(stage, config, inputs))
    with started(stage.name, {"stage": stage.name, "fingerprint": fingerprint}, kept) as run:
        hold.names(run.id)
        made = _make(stage, config, inputs, work, run)
        if stage.kind == "adapter":
            made["teachers"] = teachers_of(made, inputs)
            made["rows"] = next((inputs[kind].named() for kind in ("rows", "generated") if kind in inputs), None)
        made_by = {"run_id": run.id, "stage": stage.name, "fingerprint": fingerprint, "at": _now()}
        product = products.publish(work, folder, stage.kind, made_by, made)
        _named(run, product)
    say(f"{stage.name}: done, {_shown(folder)} (run {run.id})")
    return product


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _named(run: Run, product: Product) -> None:
    run.tags({"product.kind": product.kind, "product.digest": product.digest, "product.folder": product.folder})
    run.file(product.file(products.MANIFEST))


def _end_late(stage: Stage, folder: Path, kept: Kept) -> None:
    """Ends the run of a product that is whole: its end was cut, or the tracking server was away."""
    if kept.run_id() is None or not (folder / products.MANIFEST).exists():
        return
    product = products.load(folder)
    if product.run_id == kept.run_id():
        with started(stage.name, {}, kept) as run:
            _named(run, product)
        say(f"{stage.name}: run {run.id} is ended, its product was there")


def _found(stage: Stage, config: Config, folder: Path) -> Product | None:
    found = _reusable(stage, config, folder) if config.reuse else None
    if found is None:
        return None
    say(f"{stage.name}: reused from run {found.run_id} ({_shown(folder)})")
    if not is_child_of_open(found.run_id):
        with started(stage.name, {"stage": stage.name, "reused_from": found.run_id}):
            pass
    return found


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
        if not launch.is_spawned(stage.name, config.compute):
            made: dict[str, Any] = stage.module.run(config, inputs, work, run)
            launch.clear(work)
            return made
        try:
            return launch.run(stage.name, config, inputs, work, run.id)
        except launch.RankFailed as failed:
            run.tags({"failed_rank": failed.rank, "failed_error": failed.error})
            raise


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
