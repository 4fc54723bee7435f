"""Calls of tools in what a model wrote: in the text of a turn, and in the transcript of an episode.

A turn's text is read as TRL reads it with transformers' parser and the response template of
`pipelines/policy/tool_parsing.py`, so that an episode goes the same way in training and in evaluation.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.row import Message

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_REGION = re.compile(r"<think>|<tool_call>")
_ENDS = {"<think>": re.compile(r"</think>\s*"), OPEN: re.compile(r"</tool_call>\s*")}


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the model wrote it: any arguments, of any type."""

    name: str
    arguments: Any


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """The messages behind the prompt as the text that verify reads."""
    return json.dumps(list(messages), ensure_ascii=False)


def calls_of(completion: str) -> list[Call] | None:
    """The calls of a transcript in order; [] where it makes none, None where the text is no transcript.

    What tools have answered is not read. A call without a name is none.
    """
    try:
        messages = json.loads(completion)
    except (ValueError, RecursionError):
        return None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None
    return [call for message in messages if message.get("role") == "assistant" for call in calls_in(message)]


def calls_in(message: Mapping[str, Any]) -> Iterator[Call]:
    """The calls of one message.

    OpenAI's servers write arguments as a text of JSON, and give each call an id. A call that was parsed from a model's
    text has none, and there a text in place of the arguments is a mistake, which its tool refuses.
    """
    listed = message.get("tool_calls")
    for item in listed if isinstance(listed, list) else []:
        function = item.get("function", item) if isinstance(item, dict) else None
        if isinstance(function, dict) and isinstance(name := function.get("name"), str):
            arguments = function.get("arguments")
            wired = function is not item and "id" in item
            yield Call(name, {} if arguments is None else _unwired(arguments) if wired else arguments)


def _unwired(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments


def turn(text: str, tools: Sequence[Mapping[str, Any]]) -> Message:
    """The assistant's message that a text is: with its calls, or as plain text where one of them is malformed."""
    try:
        return _turn(text, _properties(tools))
    except (ValueError, RecursionError):
        return {"role": "assistant", "content": text}


def _turn(text: str, properties: Mapping[str, Mapping[str, Any]]) -> Message:
    """Raises ValueError where a call is malformed."""
    message: Message = {"role": "assistant", "content": ""}
    calls: list[dict[str, Any]] = []
    at = 0
    while found := _REGION.search(text, at):
        _say(message, text[at : found.start()])
        end = _ENDS[found.group()].search(text, found.end())
        inside = text[found.end() : end.start() if end else len(text)]
        at = end.end() if end else len(text)
        if found.group() != OPEN:
            message["reasoning_content"] = inside.strip()
        elif end is None:
            raise ValueError("the call has no end")
        else:
            calls.append({"type": "function", "function": _function(json.loads(inside), properties)})
    _say(message, text[at:])
    if not message.get("reasoning_content", True):
        del message["reasoning_content"]
    return {**message, "tool_calls": calls} if calls else message


def _say(message: Message, text: str) -> None:
    """Of the texts between calls the last one stays."""
    if text:
        message["content"] = text.strip()


def _function(call: Any, properties: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where it is no object with a name."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError("a call has no name")
    if call.get("arguments") is None:
        call["arguments"] = {}
    known = properties.get(call["name"])
    if known and isinstance(call["arguments"], dict):
        call["arguments"] = {key: _typed(value, known.get(key)) for key, value in call["arguments"].items()}
    return call


def _properties(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    functions = [tool.get("function", tool) for tool in tools]
    return {function["name"]: function.get("parameters", {}).get("properties", {}) for function in functions}


def _typed(value: Any, schema: Any) -> Any:
    """A text in place of a number or a truth value, as models write it, in the type that the schema asks for."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(value, list) and kind not in (None, "array"):
        return [_cast(item, kind) if isinstance(item, str) else item for item in value]
    return _cast(value, kind) if isinstance(value, str) else value


def _cast(text: str, kind: Any) -> Any:
    try:
        if kind == "integer":
            return _integer(text)
        if kind == "number":
            return _number(text)
        if kind in ("object", "array"):
            found = json.loads(text)
            return found if isinstance(found, dict if kind == "object" else list) else text
    except ValueError:
        return text
    truth = text.strip().lower()
    return truth in ("true", "1") if kind == "boolean" and truth in ("true", "1", "false", "0") else text


def _integer(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        return int(number) if number.is_integer() else text


def _number(text: str) -> float | str:
    number = float(text)
    if number != number or number in (float("inf"), float("-inf")):
        return text
    return int(number) if number.is_integer() and "." not in text else number
