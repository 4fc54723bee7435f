"""A version's stages run again from its own configuration in fresh folders, by the code here or by another commit's."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import product as products
from pipelines.config.compose import as_yaml
from pipelines.config.paths import resolve
from pipelines.config.schema import Config, Paths, Tracking
from pipelines.errors import Refused, Unreachable, UserError
from pipelines.perform import run_stage
from pipelines.planning.automatic import settled
from pipelines.product import Product
from pipelines.stages import STAGES, Stage, named_input
from pipelines.tracking import provenance

TRAININGS = ("generate", "sft", "distill", "grpo")  # in the order of a flow
INPUTS = ("rows", "adapter", "generated")  # the products that a block may name by folder
TOLD = {error.exit_code: error for error in (UserError, Refused, Unreachable)}


def fresh(config: Config, folder: Path, tracking: Tracking) -> Config:
    """The version's configuration with folders of its own, nothing reused, tracked where this command is.

    Only the candidate and its reference are judged: the others were there for comparison.
    """
    where = Paths(rows=str(folder / "rows"), adapters=str(folder / "adapters"), outputs=str(folder / "outputs"))
    judged = {name: config.evaluate.subjects[name] for name in (config.evaluate.candidate, config.evaluate.reference)}
    here = {"uri": os.environ["MLFLOW_TRACKING_URI"], "system_metrics": False}
    updates: dict[str, Any] = {
        "paths": where,
        "tracking": tracking.model_copy(update=here),
        "reuse": False,
        "resume": None,
        "evaluate": config.evaluate.model_copy(update={"subjects": judged}),
    }
    return config.model_copy(update=updates)


def with_last(config: Config, stage: str) -> Config:
    """The configuration whose flow's last training is that which made the version's adapter."""
    trainings = [name for name in TRAININGS if name in config.flow or name == stage]
    kept = trainings[: trainings.index(stage) + 1]
    return config.model_copy(update={"flow": ["prepare", *kept, "evaluate", "package", "promote"]})


def order(config: Config, last: str) -> list[str]:
    """The stages that have to run for the product of `last`, each after those that it reads."""
    found: list[str] = []

    def visit(stage: Stage) -> None:
        for kind in stage.wanted(config):
            if named_input(stage, config, kind) is None:
                visit(stage.maker(config, kind))
        if stage.name not in found:
            found.append(stage.name)

    visit(STAGES[last])
    return found


def named(config: Config) -> Iterator[tuple[str, str, str]]:
    """Stage, kind and folder of every input that a training's block names."""
    for stage in TRAININGS:
        for kind in INPUTS:
            if folder := getattr(getattr(config, stage), kind, None):
                yield stage, kind, folder


def with_input(config: Config, stage: str, kind: str, folder: str | None) -> Config:
    """The configuration with a stage's input named, or with None, made."""
    block = getattr(config, stage).model_copy(update={kind: folder})
    return config.model_copy(update={stage: block})


def run_here(config: Config, stage: str, made: Mapping[str, Product]) -> Product:
    """The stage's product, made by this code in a child of the open run; `made` are those before it by stage."""
    step = STAGES[stage]
    inputs = {}
    for kind in step.wanted(config):
        given = named_input(step, config, kind)
        inputs[kind] = given if given is not None else made[step.maker(config, kind).name]
    return run_stage(step, settled([stage], config), inputs)


def run_there(config: Config, stage: str, code: Path, run_id: str) -> Product:
    """The stage's product, made by the launcher of the working tree `code` in a child of the run.

    Raises what the launcher's exit code stands for.
    """
    file = Path(config.paths.outputs) / f"{stage}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_yaml(config), encoding="utf-8")
    child = provenance.open_child(run_id, stage)
    path = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", stage, "--resolved", str(file)],
        cwd=code,
        env={**os.environ, "MLFLOW_RUN_ID": child, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        provenance.end_if_open(child)
        raise TOLD.get(done.returncode, UserError)(
            f"reproduce: {stage} of that commit ended with exit code {done.returncode}; what it said is above"
        )
    return made_by(config, stage)


def made_by(config: Config, stage: str) -> Product:
    """The product that a stage left in the fresh folders."""
    kind = STAGES[stage].kind
    roots = {"rows": config.paths.rows, "generated": config.paths.rows, "adapter": config.paths.adapters}
    root = Path(roots.get(kind, f"{config.paths.outputs}/{kind}"))
    found = [products.load(path.parent) for path in sorted(root.glob(f"*/{products.MANIFEST}"))]
    return next(product for product in found if product.made_by["stage"] == stage)


def link_files(config: Config, code: Path) -> None:
    """What the configuration names by a relative path and the commit doesn't hold is linked into its tree."""
    for text in _texts(config.model_dump()):
        given, there = Path(text), code / text
        if given.is_absolute() or ".." in given.parts or "/" not in text or there.exists():
            continue
        if (here := resolve(text)).exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(here)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
