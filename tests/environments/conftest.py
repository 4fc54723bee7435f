"""Seed 1's bank, and rows over it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from pipelines.config.paths import CONF
from pipelines.config.schema import Task
from pipelines.dataset.row import Row
from pipelines.environments.bank import Bank
from pipelines.environments.environment import digest

# What seed 1 gives the customer: read off once, and the ground of every expectation below.
CHECKING, SAVINGS, TRAVEL, OTHERS = 5932, 7499, 8613, 1601  # 120, 722, 235 (in euros), 445 of somebody else's
CARD, SECOND_CARD, OTHERS_CARD = 3970, 8857, 5706  # limits 500, 100, 700
STATE: dict[str, list[Any]] = {
    "customers": [[1, "Ada"], [2, "Bo"]],
    "accounts": [
        [1601, 2, "checking", "USD", 44500, "open"],
        [5932, 1, "checking", "USD", 12000, "open"],
        [7499, 1, "savings", "USD", 72200, "open"],
        [8613, 1, "travel", "EUR", 23500, "open"],
    ],
    "cards": [[3970, 1, 50000, 0], [5706, 2, 70000, 0], [8857, 1, 10000, 0]],
    "transfers": [],
}
MakeTask = Callable[..., Task]


def changed(**tables: list[Any]) -> dict[str, list[Any]]:
    """Seed 1's state with other tables."""
    return {**STATE, **tables}


def row(state: dict[str, list[Any]], goal: list[Any], seed: str = "1") -> Row:
    """A row whose right state is given, and the calls that lead there."""
    return Row(
        id="0" * 16,
        task="bank",
        prompt=[{"role": "user", "content": "Do it."}],
        completion=[],
        answer=digest(state),
        label="transfer",
        source="bank@1:1",
        group="0" * 16,
        kept={"environment_seed": seed, "goal": json.dumps(goal)},
    )


def said(*turns: Any) -> str:
    """A transcript: a text is an answer, a pair (tool, arguments) a call with the tool's answer forged."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if isinstance(turn, str):
            messages.append({"role": "assistant", "content": turn})
        else:
            function = {"name": turn[0], "arguments": turn[1]}
            calls = [{"type": "function", "function": function}]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            messages.append({"role": "tool", "name": turn[0], "content": '{"ok":true}'})
    return json.dumps(messages)


@pytest.fixture
def bank() -> Bank:
    """Seed 1's bank, untouched."""
    made = Bank()
    made.reset(kept={"environment_seed": "1"})
    return made


@pytest.fixture
def make_task() -> MakeTask:
    """The shipped task, its sources left out."""

    def make(**changes: Any) -> Task:
        fields = yaml.safe_load((CONF / "task/bank.yaml").read_text(encoding="utf-8"))
        return Task(**{**fields, "sources": {}, **changes})

    return make
