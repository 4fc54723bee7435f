"""Simulated worlds with tools: one environment for reinforcement learning, demonstrations and evaluation."""

import importlib
import re
from collections.abc import Callable
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.environments.bank import Bank
from pipelines.environments.database import Database
from pipelines.environments.environment import Environment
from pipelines.environments.notebook import Notebook
from pipelines.environments.shell import Shell
from pipelines.errors import UserError

__all__ = ["ENVIRONMENTS", "Environment", "check", "resolve_environment", "runs_programs"]

ENVIRONMENTS: dict[str, Callable[[], Environment]] = {
    "bank": Bank,
    "database": Database,
    "notebook": Notebook,
    "shell": Shell,
}

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_PARTS = ("reset", "call", "tools", "state")


def resolve_environment(name: str) -> Callable[[], Environment]:
    """What makes environments of this name: one of ENVIRONMENTS, or a class `package.module:Class`.

    Raises UserError for a name that leads to none, or to something that lacks a part of an environment.
    """
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if not _OWN.fullmatch(name):
        raise UserError(
            f"task.environment: expected an environment's name or package.module:Class, got {name!r}"
            + did_you_mean(name, ENVIRONMENTS)
        )
    return _import(*name.split(":"))


def runs_programs(name: str) -> bool:
    """Whether its calls run what a model wrote, and so take as long as a sandbox allows: it says so of itself.

    Raises UserError as resolve_environment.
    """
    return bool(getattr(resolve_environment(name), "runs_programs", False))


def check(name: str) -> None:
    """Whether it can work on this machine: asks its `check`, where it has one.

    Raises UserError where it can't, and as resolve_environment.
    """
    found = getattr(resolve_environment(name), "check", None)
    if found is not None:
        found()


def _import(module_name: str, class_name: str) -> Callable[[], Environment]:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not: its author needs the traceback
        raise UserError(f"task.environment: no module {error.name!r}; is its folder on PYTHONPATH?") from error
    found: Any = getattr(module, class_name, None)
    if not callable(found):
        guess = did_you_mean(class_name, [name for name, value in vars(module).items() if callable(value)])
        raise UserError(f"task.environment: {module_name} has no class {class_name!r}{guess}")
    lacking = [part for part in _PARTS if not callable(getattr(found, part, None))]
    if lacking:
        raise UserError(f"task.environment: {module_name}:{class_name} has no {', '.join(lacking)}")
    return found
