"""What the rows of a task are and what correct means: one verify for every stage."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Sandbox, Task
from pipelines.errors import UserError
from pipelines.tasks.verdict import Verdict, VerifierFailed, Verify

__all__ = [
    "UNJUDGED",
    "VERIFIERS",
    "Entry",
    "Verdict",
    "VerifierFailed",
    "Verify",
    "field_of",
    "is_isolated",
    "preloaded",
    "resolve_verify",
    "runs_programs",
]

UNJUDGED = "none"  # rows that no program can judge: nothing checks their answers, and evaluate refuses them

_REPLAY = "pipelines.environments.replay"  # whose verifiers run programs where the task's environment does
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Entry:
    """How a named verifier is made: by `function` of `module`, called with the task, and with the sandbox if it runs
    programs.

    `isolated` ones are asked in workers that can be killed; the others are linear in the answer and can't fail.
    `needs` is a package of the extra `rl`.
    """

    module: str
    function: str = "verifier"
    isolated: bool = True
    sandboxed: bool = False
    needs: str | None = None


VERIFIERS: dict[str, Entry] = {
    "label": Entry("pipelines.tasks.label", isolated=False),
    "exact": Entry("pipelines.tasks.text", "exact", isolated=False),
    "number": Entry("pipelines.tasks.text", "number", isolated=False),
    "math": Entry("pipelines.tasks.math", needs="math_verify"),
    "math_strict": Entry("pipelines.tasks.math", "strict", needs="math_verify"),
    "code": Entry("pipelines.tasks.code", sandboxed=True),
    "code_hidden": Entry("pipelines.tasks.code", "hidden", sandboxed=True),
    "json_schema": Entry("pipelines.tasks.json_schema"),
    "json_schema_strict": Entry("pipelines.tasks.json_schema", "strict"),
    "reasoning_gym": Entry("pipelines.tasks.reasoning", needs="reasoning_gym"),
    "environment": Entry(_REPLAY),
    "environment_strict": Entry(_REPLAY, "strict"),
}


def resolve_verify(task: Task, sandbox: Sandbox | None = None, name: str | None = None) -> Verify:
    """The verify of a task: a name in VERIFIERS, or a function `package.module:function`.

    Such a function takes (completion, row) and returns a Verdict. `name` stands in for the task's own (the audit's);
    `sandbox` is where programs run, for those verifiers that run them. Raises UserError for a name that leads to none,
    and for one whose package isn't installed.
    """
    wanted, field = name or task.verify, field_of(name)
    entry = _entry(task, wanted, field)
    if entry is None:
        module, _, function = wanted.partition(":")
        return _import(module, function, field)
    make: Callable[..., Verify] = getattr(importlib.import_module(entry.module), entry.function)
    if not entry.sandboxed:
        return make(task)
    if sandbox is None:
        raise ValueError(f"{wanted} runs programs: it needs a sandbox")
    return make(task, sandbox)


def is_isolated(task: Task, name: str | None = None) -> bool:
    """Whether its verify is asked in a worker of its own: a user's function is. Raises UserError as resolve_verify."""
    entry = _entry(task, name or task.verify, field_of(name))
    return entry is None or entry.isolated


def runs_programs(task: Task, name: str | None = None) -> bool:
    """Whether its verify runs what a model wrote, and so takes as long as the sandbox allows."""
    entry = _entry(task, name or task.verify, field_of(name))
    if entry is None or task.environment is None or entry.module != _REPLAY:
        return entry is not None and entry.sandboxed
    return importlib.import_module("pipelines.environments").runs_programs(task.environment)


def preloaded(task: Task, name: str | None = None) -> list[str]:
    """The modules that making the verify imports, for a process that others are forked from."""
    wanted = name or task.verify
    entry = VERIFIERS.get(wanted)
    if entry is None:
        return [wanted.partition(":")[0]]
    return [entry.module, *([entry.needs] if entry.needs else [])]


def field_of(name: str | None) -> str:
    """The field that names the verifier: another than the task's own is its audit."""
    return "task.verify" if name is None else "task.audit"


def _entry(task: Task, wanted: str, field: str) -> Entry | None:
    """The named verifier's entry; None for a user's own function."""
    if wanted == UNJUDGED:
        raise UserError(f"{field}: {task.name} has no verifier; set one of {', '.join(VERIFIERS)} or a function")
    if wanted in VERIFIERS:
        needs = VERIFIERS[wanted].needs
        if needs is not None and find_spec(needs) is None:
            raise UserError(f'{field}: {wanted} needs {needs}: pip install "tunesmith[rl]"')
        return VERIFIERS[wanted]
    if not _OWN.fullmatch(wanted):
        raise UserError(
            f"{field}: expected a verifier's name or package.module:function, got {wanted!r}"
            + did_you_mean(wanted, VERIFIERS)
        )
    return None


def _import(module_name: str, function_name: str, field: str) -> Verify:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not: its author needs the traceback
        raise UserError(f"{field}: no module {error.name!r}; is its folder on PYTHONPATH?") from error
    function: Verify | None = getattr(module, function_name, None)
    if not callable(function):
        guess = did_you_mean(function_name, [name for name, value in vars(module).items() if callable(value)])
        raise UserError(f"{field}: {module_name} has no function {function_name!r}{guess}")
    return function
