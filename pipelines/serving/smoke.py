"""The smoke test: what the address answers, beside what the version answered when it was packaged."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from pipelines.environments.calls import calls_in, turn
from pipelines.errors import Refused, Unreachable

RECORDED = "artifacts/release/answers.json"
SECONDS_FOR_AN_ANSWER = 300.0

Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # a recorded row -> the assistant's message


@dataclass(frozen=True)
class Compared:
    """A row: what was recorded and what the address says to it."""

    row_id: str
    recorded: str
    answered: str
    same: bool


def recorded(files: Path, count: int) -> list[dict[str, Any]]:
    """The first rows whose answers the version holds, at most `count`; none where it holds no answers."""
    path = files / RECORDED
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found[:count]


def compare(rows: Sequence[Mapping[str, Any]], ask: Ask) -> list[Compared]:
    """Asks each row once."""
    return [_compared(row, ask(row)) for row in rows]


def check(version: str, compared: Sequence[Compared], differing: int) -> None:
    """Raises Refused naming the first row that differs where more than `differing` do."""
    wrong = [one for one in compared if not one.same]
    if len(wrong) > differing:
        first = wrong[0]
        raise Refused(
            f"{version} is not served: {len(wrong)} of {len(compared)} recorded answers differ, first row "
            f"{first.row_id}: recorded {first.recorded!r}, the address answers {first.answered!r}"
        )


def as_json(version: str, compared: Sequence[Compared]) -> str:
    """For the run's record."""
    return json.dumps({"version": version, "rows": [asdict(one) for one in compared]}, ensure_ascii=False, indent=2)


def over_chat(address: str, model: str, key: str | None, limit: int) -> Ask:
    """Asks an OpenAI-compatible address, up to its /v1. Raises Unreachable where it has no answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(row: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {**_question(row), "model": model, "temperature": 0, "max_tokens": limit}
        return _asked(f"{address}/chat/completions", body, headers)

    return ask


def over_invocations(address: str, limit: int) -> Ask:
    """Asks MLflow's scoring server."""
    return lambda row: _asked(f"{address}/invocations", {**_question(row), "max_tokens": limit}, {})


def _question(row: Mapping[str, Any]) -> dict[str, Any]:
    messages = [_wired(message) for message in row["messages"]]
    return {"messages": messages, **({"tools": row["tools"]} if row.get("tools") else {})}


def _wired(message: Mapping[str, Any]) -> dict[str, Any]:
    """With arguments of calls as OpenAI writes them: a text of JSON."""
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    return {**message, "tool_calls": [_wired_call(call, number) for number, call in enumerate(calls)]}


def _wired_call(call: Mapping[str, Any], number: int) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call_{number}", "type": "function", "function": {"name": function["name"], "arguments": text}}


def _asked(url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        reply = httpx2.post(url, json=dict(body), headers=dict(headers), timeout=SECONDS_FOR_AN_ANSWER)
    except httpx2.HTTPError as error:
        raise Unreachable(f"serve: {url} doesn't answer the smoke test: {error}") from None
    if not reply.is_success:
        raise Unreachable(f"serve: {url} refuses the smoke test with {reply.status_code}: {reply.text[:300]}")
    message: Mapping[str, Any] = reply.json()["choices"][0]["message"]
    return message


def _compared(row: Mapping[str, Any], message: Mapping[str, Any]) -> Compared:
    text = message.get("content") or ""
    if message.get("tool_calls"):
        calls = [{"name": call.name, "arguments": call.arguments} for call in calls_in(message)]
        text += "".join(f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>" for call in calls)
    same = text == row["answer"] or _meant(text, row) == _meant(row["answer"], row)
    return Compared(str(row["row_id"]), row["answer"], text, same)


def _meant(text: str, row: Mapping[str, Any]) -> Any:
    """With tools the same calls count, however they are spaced; without, the text as it is."""
    return turn(text, row["tools"]) if row.get("tools") else text
