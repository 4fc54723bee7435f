"""What the rows of a task are and what correct means: one verify for every stage."""

import importlib
import re
from collections.abc import Callable

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Task
from pipelines.errors import UserError
from pipelines.tasks import label, text
from pipelines.tasks.verdict import Verdict, Verify

__all__ = ["UNJUDGED", "VERIFIERS", "Verdict", "Verify", "resolve_verify"]

VERIFIERS: dict[str, Callable[[Task], Verify]] = {"label": label.verifier, "exact": text.exact, "number": text.number}
UNJUDGED = "none"  # rows that no program can judge: nothing checks their answers, and evaluate refuses them

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def resolve_verify(task: Task) -> Verify:
    """The verify of a task: a name in VERIFIERS, or a function `package.module:function`.

    Such a function takes (completion, row) and returns a Verdict. Raises UserError for a name that
    leads to none.
    """
    if task.verify == UNJUDGED:
        raise UserError(f"task.verify: {task.name} has no verifier; set one of {', '.join(VERIFIERS)} or a function")
    if task.verify in VERIFIERS:
        return VERIFIERS[task.verify](task)
    if not _OWN.fullmatch(task.verify):
        raise UserError(
            f"task.verify: expected a verifier's name or package.module:function, got {task.verify!r}"
            + did_you_mean(task.verify, VERIFIERS)
        )
    return _import(*task.verify.split(":"))


def _import(module_name: str, function_name: str) -> Verify:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not: its author needs the traceback
        raise UserError(f"task.verify: no module {error.name!r}; is its folder on PYTHONPATH?") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        guess = did_you_mean(function_name, [name for name, value in vars(module).items() if callable(value)])
        raise UserError(f"task.verify: {module_name} has no function {function_name!r}{guess}")
    return function
