"""Simulated worlds with tools: one environment for reinforcement learning, demonstrations and evaluation."""

import importlib
import re
from collections.abc import Callable
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.environments.bank import Bank
from pipelines.environments.environment import Environment
from pipelines.errors import UserError

__all__ = ["ENVIRONMENTS", "Environment", "resolve_environment"]

ENVIRONMENTS: dict[str, Callable[[], Environment]] = {"bank": Bank}

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
