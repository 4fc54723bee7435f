"""Rows of a simulated world: questions made from a seed, each with the calls that answer it and what tools answered."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.environments.environment import GOAL, Environment, digest
from pipelines.environments.texts import SEED
from pipelines.errors import UserError

_TRIES = 200  # to make a question that was not asked yet
Called = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Asked:
    """A question, the calls that look first, those that change the state, and what is said at the end."""

    text: str
    looks: Sequence[Called]
    goal: Sequence[Called]
    said: str = "Done."


@dataclass(frozen=True)
class Simulation:
    """A world's name, what makes it, and its kinds of question: each makes one from the seed of an episode.

    `settings` are names of its own, beside `kinds`, that it has read itself.
    """

    name: str
    make: Callable[[], Environment]
    kinds: Mapping[str, Callable[[str], Asked]]
    settings: tuple[str, ...] = ()


def records(of: Simulation, count: int, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Records of shape messages: the question, the demonstration, the tools, answer, label, environment_seed and goal.

    `settings`: `kinds`, of the simulation's (null: all), each as often as the others. No question is asked twice.
    Raises UserError for other settings.
    """
    kinds, environment, asked = _kinds(of, settings), of.make(), set[str]()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        for attempt in range(_TRIES):
            environment_seed = f"{seed}-{number}-{attempt}"
            made = of.kinds[kind](environment_seed)
            if made.text not in asked:
                break
        else:
            raise UserError(f"count: {count:,} is more than there are different questions of kind {kind}")
        asked.add(made.text)
        yield _record(environment, kind, environment_seed, made)


def _kinds(of: Simulation, settings: Mapping[str, Any]) -> list[str]:
    known = ("kinds", *of.settings)
    for name in settings:
        if name not in known:
            guess = did_you_mean(str(name), known)
            raise UserError(f"settings: {of.name} knows {' and '.join(known)}, got {name!r}{guess}")
    kinds = settings.get("kinds")
    kinds = list(of.kinds) if kinds is None else kinds
    if not isinstance(kinds, list | tuple) or not kinds:
        raise UserError(f"settings: kinds: expected a list of {', '.join(of.kinds)}, got {kinds!r}")
    for kind in kinds:
        if kind not in of.kinds:
            guess = did_you_mean(str(kind), of.kinds)
            raise UserError(f"settings: kinds: expected {', '.join(of.kinds)}, got {kind!r}{guess}")
    return list(kinds)


def _record(environment: Environment, kind: str, environment_seed: str, made: Asked) -> dict[str, Any]:
    environment.reset(kept={SEED: environment_seed})
    messages: list[dict[str, Any]] = [{"role": "user", "content": made.text}]
    for name, arguments in [*made.looks, *made.goal]:
        function = {"name": name, "arguments": arguments}
        call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        messages += [call, {"role": "tool", "name": name, "content": environment.call(name, arguments)}]
    return {
        "messages": [*messages, {"role": "assistant", "content": made.said}],
        "tools": environment.tools(),
        "answer": digest(environment.state()),
        "label": kind,
        SEED: environment_seed,
        GOAL: json.dumps(made.goal),
    }
