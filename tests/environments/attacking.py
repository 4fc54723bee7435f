"""What the tests of these environments share: rows, a scripted teacher, and which processes are left."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil
import yaml

from pipelines.config.paths import CONF
from pipelines.config.schema import Task
from pipelines.dataset.row import Message, Row
from pipelines.environments.calls import transcript


def task(name: str) -> Task:
    """The shipped task, its sources left out."""
    fields = yaml.safe_load((CONF / f"task/{name}.yaml").read_text(encoding="utf-8"))
    return Task(**{**fields, "sources": {}})


def rows(name: str, records: Iterator[dict[str, Any]]) -> list[Row]:
    """The records as rows, each with its demonstration behind the prompt."""
    found = []
    for number, record in enumerate(records):
        kept = {key: record[key] for key in ("environment_seed", "goal")}
        asked = record["messages"]
        found.append(
            Row(f"{number}", name, asked[:1], asked[1:], record["answer"], record["label"], name, "", kept=kept)
        )
    return found


def teacher(asked: Sequence[Row]) -> Any:
    """A subject that plays the demonstrations, whichever rows go on."""
    by_text = {row.prompt[0]["content"]: row for row in asked}

    def ask(conversations: list[list[Message]], tools: Sequence[Mapping[str, Any]]) -> list[str]:
        said = []
        for messages in conversations:
            spoken = [m for m in by_text[messages[0]["content"]].completion if m["role"] == "assistant"]
            turn = spoken[sum(m["role"] == "assistant" for m in messages)]
            calls = [json.dumps(call["function"]) for call in turn.get("tool_calls") or []]
            said.append(turn["content"] + "".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls))
        return said

    return ask


def spoiled(row: Row) -> str:
    """The demonstration without its last call."""
    messages = list(row.completion)
    last = max(i for i, message in enumerate(messages) if message.get("tool_calls"))
    return transcript(messages[:last] + messages[last + 2 :])


def processes(but: set[int]) -> set[int]:
    """This process's descendants beside those given, when they have had time to end."""
    until = time.monotonic() + 3
    while found := {process.pid for process in psutil.Process().children(recursive=True)} - but:
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return found
