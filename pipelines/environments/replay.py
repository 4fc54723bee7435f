"""The verify of tasks with tools: calls made again in a fresh environment, and the state that they lead to."""

import json
from collections.abc import Sequence
from typing import Any

from pipelines.config.schema import Task
from pipelines.dataset.row import Row
from pipelines.environments.calls import Call, calls_of
from pipelines.environments.environment import GOAL, digest
from pipelines.environments.tools import Toolbox, answered, environment_class, state_of
from pipelines.errors import DataError, UserError
from pipelines.tasks.verdict import Verdict, VerifierFailed, Verify

MOST_CALLS = 100  # of an episode: more are no answer
_SHOWN = 500  # characters of `parsed`


def verifier(task: Task) -> Verify:
    """A verify that makes a transcript's calls again and compares the state they leave with the row's answer.

    The completion is a JSON list of the messages behind the prompt (`calls.transcript`); what it says that tools
    answered is not read, and a text that is no such list makes no call. `answer` is the digest of the state that is
    right, the whole of it. Raises UserError where the task names no environment, VerifierFailed where the environment
    can't begin the episode.
    """
    box = _box(task)

    def verify(completion: str, row: Row) -> Verdict:
        calls = calls_of(completion) or []
        if len(calls) > MOST_CALLS:
            return Verdict(correct=False, parsed=_told(calls))
        begun = _begun(box, row)
        for call in calls:
            answered(begun, call)
        return Verdict(correct=_state(begun) == row.answer, parsed=_told(calls) if calls else None)

    return verify


def strict(task: Task) -> Verify:
    """As `verifier`, and besides: the episode ends in an answer without a call, no call fails, no change is taken
    back, and no more calls change the state than those of the row's goal do.
    """
    box, verify = _box(task), verifier(task)

    def audit(completion: str, row: Row) -> Verdict:
        verdict = verify(completion, row)
        calls = calls_of(completion) or []
        sound = verdict.correct and _ends_in_text(completion) and _sound(box, calls, row)
        return Verdict(correct=sound, parsed=verdict.parsed)

    return audit


def _box(task: Task) -> type[Toolbox]:
    if task.environment is None:
        raise UserError(f"task.environment: {task.name} names none, and its verify replays calls in one")
    return environment_class(task.environment)


def _begun(box: type[Toolbox], row: Row) -> Toolbox:
    try:
        begun = box()
        begun.reset(**row.as_dict())
    except DataError:
        raise
    except Exception as error:
        raise VerifierFailed(f"the environment can't begin the episode of row {row.id}: {error!r}") from error
    return begun


def _state(begun: Toolbox) -> str:
    try:
        return digest(state_of(begun))
    except Exception as error:
        raise VerifierFailed(f"the environment's state can't be told: {error!r}") from error


def _sound(box: type[Toolbox], calls: Sequence[Call], row: Row) -> bool:
    states, failed = _states(box, calls, row)
    wanted, _ = _states(box, _goal(row), row)
    return not failed and len(states) == len(set(states)) and len(states) <= len(wanted)


def _states(box: type[Toolbox], calls: Sequence[Call], row: Row) -> tuple[list[str], bool]:
    """The states that follow one another, and whether a call failed."""
    begun, any_failed = _begun(box, row), False
    states = [_state(begun)]
    for call in calls:
        _, failed = answered(begun, call)
        any_failed |= failed
        if (state := _state(begun)) != states[-1]:
            states.append(state)
    return states, any_failed


def _goal(row: Row) -> list[Call]:
    """Raises DataError where the row doesn't say which calls are its goal."""
    written = (row.kept or {}).get(GOAL)
    try:
        return [Call(name, arguments) for name, arguments in json.loads(written or "")]
    except (ValueError, TypeError) as error:
        raise DataError(f"{row.source}: kept.{GOAL}: expected [[tool, arguments], ...], got {written!r}") from error


def _ends_in_text(completion: str) -> bool:
    try:
        messages: Any = json.loads(completion)
    except (ValueError, RecursionError):
        return True
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    last = messages[-1]
    return last.get("role") == "assistant" and not last.get("tool_calls")


def _told(calls: Sequence[Call]) -> str:
    """The calls as one line: `transfer(source=1, target=2, amount=50); freeze(card=3)`."""
    told = ""
    for call in calls:
        told += f"{'; ' if told else ''}{call.name}({_arguments(call.arguments)})"
        if len(told) > _SHOWN:
            return f"{told[:_SHOWN]}..."
    return told


def _arguments(arguments: Any) -> str:
    try:
        if isinstance(arguments, dict):
            return ", ".join(f"{key}={json.dumps(value)}" for key, value in arguments.items())
        return json.dumps(arguments)
    except RecursionError:
        return "..."
