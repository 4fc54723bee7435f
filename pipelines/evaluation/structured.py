"""Answers that a program reads: JSON that meets a schema, its fields, and calls of tools."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from pipelines.dataset.json_schema import NotJson, parse, validator
from pipelines.dataset.messages import arguments_of
from pipelines.dataset.row import Row, text_of
from pipelines.dataset.strict_json import kind

DEFINITIONS: dict[str, str] = {
    "json_valid": "Share of the answers that are one JSON value and nothing else, and meet the schema of "
    "evaluate.json_schema where one is set (RFC 8259, JSON Schema). Repeated keys, NaN and Infinity are refused; so "
    "is JSON within ``` fences or with words around it, because a program that reads JSON can't read that.",
    "json_fields": "F1 of the answer's fields against the expected object's, the mean over rows: a field is a value "
    "that isn't an object or a list with items, with the keys and positions that lead to it; it counts where the "
    'value is equal, numbers as numbers (1 is 1.0, but not "1"). Missing, wrong and additional fields lower it. 0 '
    "for what isn't JSON, judged as json_valid judges.",
    "tool_calls": "F1 of the answer's tool calls against the expected ones, the mean over rows: a call counts where "
    "its name and all its arguments are equal, whatever the order; a call that can't be read counts as a wrong one. "
    "1 where no call is expected and none is made, 0 where only one of both is so.",
    "tool_calls_exact": "Share of the answers whose tool calls are exactly the expected ones, whatever their order.",
}

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_PYTHON_TAG = "<|python_tag|>"

Pairs = Counter[Any]


# --- schema -------------------------------------------------------------------------------------


def valid_against(path: str | None) -> Callable[[str], float]:
    """A function that says whether an answer is JSON and meets the schema in the file: 1 or 0.

    None: any JSON does. The draft is the one that `$schema` names, else 2020-12. Raises UserError naming
    evaluate.json_schema where the file is missing, no JSON, no valid schema, or refers to one outside of it.
    """
    meets = None if path is None else validator(path, "evaluate.json_schema")

    def score(answer: str) -> float:
        value = parse(answer)
        if isinstance(value, NotJson):
            return 0.0
        try:
            return float(meets is None or meets.is_valid(value))
        except RecursionError:  # a recursive schema followed into an answer that is nested without end
            return 0.0

    return score


# --- fields -------------------------------------------------------------------------------------


def json_fields(answer: str, row: Row) -> float:
    """F1 over (path, value) pairs, 0..1, the best over the row's right answers, objects as `fields_need` checks."""
    value = parse(answer)
    if isinstance(value, NotJson):
        return 0.0
    given = Counter(leaves(value))
    return max(f1(Counter(leaves(parse(text))), given) for text in _expected_texts(row))


def fields_need(rows: Sequence[Row]) -> str | None:
    """Why the rows can't support json_fields; None where they can."""
    for row in rows:
        for value in map(parse, _expected_texts(row)):
            if not isinstance(value, dict):
                said = value.reason if isinstance(value, NotJson) else kind(value)
                return f"row {row.id} ({row.source}) expects no JSON object: {said}"
    return None


def leaves(value: Any) -> Iterator[tuple[tuple[str | int, ...], str, Hashable]]:
    """(path, kind, value) of all that is no object or list with items in it; paths of keys and positions from 0."""
    # A stack: an answer may be nested as deep as the decoder goes, which is deeper than functions can call.
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while waiting:
        path, held = waiting.pop()
        if held and isinstance(held, dict | list):
            parts = held.items() if isinstance(held, dict) else enumerate(held)
            waiting.extend(((*path, at), part) for at, part in parts)
        else:
            # The kind goes with it: true is no 1, while 1 and 1.0 are one number.
            yield path, kind(held), None if isinstance(held, dict | list) else held


def f1(expected: Pairs, given: Pairs) -> float:
    """2 |both| / (|expected| + |given|), 0..1, of things that may occur several times; 1 where both are empty."""
    total = expected.total() + given.total()
    return 2 * (expected & given).total() / total if total else 1.0


def _expected_texts(row: Row) -> list[str]:
    said = text_of(row.completion[-1]) if row.completion else ""
    return [said or row.answer, *(row.accepted or [])]


# --- calls of tools -----------------------------------------------------------------------------


def tool_calls(answer: str, row: Row) -> dict[str, float]:
    """tool_calls and tool_calls_exact of an answer to the row's prompt."""
    expected, given = Counter(expected_calls(row)), Counter(calls_in(answer))
    return {"tool_calls": f1(expected, given), "tool_calls_exact": float(expected == given)}


def calls_need(rows: Sequence[Row]) -> str | None:
    """Why the rows can't support tool_calls; None where they can."""
    return None if any(expected_calls(row) for row in rows) else "no row's completion begins with a call of a tool"


def expected_calls(row: Row) -> list[Hashable]:
    """The calls of the completion's first message, the one that answers the prompt; what tools replied is later."""
    calls = (row.completion[0].get("tool_calls") or []) if row.completion else []
    return [_call(call) for call in calls]


def calls_in(text: str) -> list[Hashable]:
    """The calls that an answer makes, in its order; a call that can't be read is None.

    `<tool_call>{...}</tool_call>` (Hermes, Qwen), Mistral's `[TOOL_CALLS][...]`, or an object or a list of objects
    with name and arguments and nothing around it (Llama, who also calls the arguments parameters).
    """
    if "<tool_call>" in text:
        return [_call(parse(body)) for body in _TAGGED.findall(text)]
    if _MISTRAL in text:
        listed = parse(text.partition(_MISTRAL)[2])
        return [_call(call) for call in listed] if isinstance(listed, list) else [None]
    bare = parse(text.strip().removeprefix(_PYTHON_TAG))
    calls = bare if isinstance(bare, list) else [bare]
    return [_call(call) for call in calls] if all(map(_looks_like_call, calls)) else []


def _looks_like_call(value: Any) -> bool:
    return isinstance(value, dict) and "name" in value and ("arguments" in value or "parameters" in value)


def _call(call: Any) -> Hashable:
    """A call as name and arguments that compare as they should; None where it is none."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    given = "arguments" if "arguments" in function else "parameters"
    try:
        arguments = arguments_of({"arguments": function.get(given, {})})
    except (ValueError, RecursionError):  # a call that no program could make either
        return None
    return (function["name"], frozenset(leaves(arguments))) if isinstance(arguments, dict) else None
