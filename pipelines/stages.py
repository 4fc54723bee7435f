"""The stages, what each reads, what decides its product and where that goes."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import product as products
from pipelines.config.paths import PROJECT, resolve
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.product import Product
from pipelines.tracking.source import code_digest

FINGERPRINT_LENGTH = 12
COUNTS_AS = {"rows": ("rows", "generated")}  # what a teacher wrote are rows like any other


@dataclass(frozen=True)
class Stage:
    """One step of the way from rows to a promoted version.

    `blocks` are the parts of the configuration that decide its product, `needs` are the kinds of the products that
    it reads, `kind` is that of its own.
    """

    name: str
    kind: str
    blocks: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def module(self) -> Any:
        return importlib.import_module(f"pipelines.{self.name}")

    def wanted(self, config: Config) -> tuple[str, ...]:
        """The inputs that this configuration needs; a stage whose options take an input's place has `unneeded`."""
        unneeded = getattr(self.module, "unneeded", None)
        without = unneeded(config) if unneeded else ()
        return tuple(kind for kind in self.needs if kind not in without)

    def maker(self, config: Config, kind: str) -> "Stage":
        """Who makes that input: the last stage of the flow that makes such, and that comes before this one."""
        before = config.flow[: config.flow.index(self.name)] if self.name in config.flow else config.flow
        makers = [stage for stage in STAGES.values() if stage.kind == kind]
        return next((STAGES[name] for name in reversed(before) if STAGES[name].kind == kind), makers[0])


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prepare", "rows", ("seed", "task", "prepare", "verifier"), ()),
        Stage("sft", "adapter", ("seed", "model", "adapter", "compute", "optimizer", "sft"), ("rows",)),
        Stage(
            "generate",
            "generated",
            ("seed", "task", "model", "compute", "teacher", "generate", "verifier"),
            ("rows",),
        ),
        Stage(
            "distill",
            "adapter",
            ("seed", "task", "model", "adapter", "compute", "optimizer", "teacher", "distill"),
            ("rows", "adapter", "generated"),
        ),
        Stage(
            "grpo",
            "adapter",
            ("seed", "task", "model", "adapter", "compute", "optimizer", "grpo", "verifier"),
            ("rows", "adapter"),
        ),
        Stage(
            "evaluate",
            "scores",
            ("seed", "task", "model", "adapter", "compute", "evaluate", "verifier"),
            ("rows", "adapter"),
        ),
        Stage(
            "package",
            "version",
            ("task", "model", "adapter", "compute", "package", "evaluate"),
            ("adapter", "scores"),
        ),
        Stage("promote", "decision", ("gate", "promote"), ("version",)),
        Stage("deploy", "deployment", ("task", "model", "adapter", "compute", "deploy", "engine"), ("version",)),
        Stage(
            "export",
            "export",
            ("seed", "task", "model", "adapter", "compute", "evaluate", "verifier", "export"),
            ("version", "rows"),
        ),
        Stage("plan", "plan", ("model", "adapter", "compute", "sft", "grpo", "distill", "plan"), ()),
        Stage("compare", "leaderboard", ("task", "compare", "evaluate"), ("rows",)),
        Stage("job", "job", tuple(Config.model_fields), ()),
    )
}


# What acts on the registry or answers, and leaves no product: `act(config)`, one file each.
ACTIONS = ("rollback", "serve", "reproduce", "lineage")


def fingerprint_of(stage: Stage, config: Config, inputs: Mapping[str, Product]) -> str:
    """sha256 over all that decides the product: configuration, code, inputs."""
    decides: dict[str, Any] = {
        "stage": stage.name,
        "config": config.model_dump(include=set(stage.blocks)),
        "code": code_digest(),
        "inputs": {name: given.digest for name, given in inputs.items()},
    }
    # Where nodes meet and how long they wait decides nothing, and differs from node to node.
    decides["config"].get("compute", {}).pop("rendezvous", None)
    if files := getattr(stage.module, "files", None):
        decides["files"] = files(config)
    return products.digest_of(decides)


def place(stage: Stage, config: Config, fingerprint: str) -> Path:
    """The folder of the product, named after what it is and what decides it."""
    model = "" if stage.name == "prepare" else f"-{config.model.name}-{config.adapter.name}"
    name = f"{config.task.name}{model}-{fingerprint[:FINGERPRINT_LENGTH]}"
    if stage.kind == "generated":
        name = f"{config.task.name}-by-{config.teacher.kind}-{fingerprint[:FINGERPRINT_LENGTH]}"
    roots = {
        "rows": Path(config.paths.rows),
        "generated": Path(config.paths.rows),
        "adapter": Path(config.paths.adapters),
    }
    root = roots.get(stage.kind, Path(config.paths.outputs) / stage.kind)
    return PROJECT / root / name


def gather(stage: Stage, config: Config) -> dict[str, Product]:
    """The inputs of a stage that runs alone: as named in its block, or what the same configuration made.

    Raises UserError naming the stage to run first.
    """
    return {kind: _input(stage, config, kind) for kind in stage.wanted(config)}


def named_input(stage: Stage, config: Config, name: str) -> Product | None:
    """The product of the folder that the stage's block names. Raises UserError where it is of another kind."""
    given = getattr(getattr(config, stage.name), name, None)
    if given is None:
        return None
    found = products.load(resolve(given))
    if found.kind not in COUNTS_AS.get(name, (name,)):
        raise UserError(f"{stage.name}.{name}: expected a folder of kind {name}, {given} is of kind {found.kind}")
    return found


def _input(stage: Stage, config: Config, kind: str) -> Product:
    if given := named_input(stage, config, kind):
        return given
    source = stage.maker(config, kind)
    folder = place(source, config, fingerprint_of(source, config, gather(source, config)))
    if not (folder / products.MANIFEST).exists():
        option = f", or set {stage.name}.{kind}=FOLDER" if hasattr(getattr(config, stage.name), kind) else ""
        raise UserError(
            f"{stage.name}: this configuration has no {kind} yet; "
            f"run `python -m pipelines {source.name}` with the same overrides first{option}"
        )
    return products.load(folder)
