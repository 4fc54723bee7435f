"""What can be wrong with a conversation: roles, turns, texts and calls of tools."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.dataset.row import Message
from pipelines.dataset.strict_json import kind

ROLES = ("system", "developer", "user", "assistant", "tool")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Who may speak after whom; "" is the beginning.
_AFTER: dict[str, tuple[str, ...]] = {
    "": ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
}


def text_problem(name: str, value: Any) -> str | None:
    """Why a value is no usable text, or None."""
    if not isinstance(value, str):
        return f"{name} is {kind(value)}, expected text"
    if not value or value.isspace():
        return f"{name} is empty"
    # An ASCII text, which most are, holds no surrogate.
    if not value.isascii() and (lone := _SURROGATE.search(value)):
        return f"{name} holds a lone surrogate U+{ord(lone.group()):04X}"
    return f"{name} holds a NUL character" if "\0" in value else None


def problems(messages: Any, tools: Sequence[Mapping[str, Any]] | None, name: str = "messages") -> list[str]:
    """Every reason why this is no conversation that can be trained on; a list without one is sound."""
    if not isinstance(messages, list):
        return [f"{name!r} is {kind(messages)}, expected a list of messages"]
    if not messages:
        return [f"{name!r} is empty"]
    found = [reason for i, message in enumerate(messages, 1) for reason in _of_message(i, message, tools)]
    return found or list(_turns(messages))


def _of_message(number: int, message: Any, tools: Sequence[Mapping[str, Any]] | None) -> Iterator[str]:
    at = f"message {number}"
    if not isinstance(message, dict):
        yield f"{at} is {kind(message)}, expected an object with role and content"
        return
    if "role" not in message:
        yield f"{at} has no role"
        return
    role = message["role"]
    if role not in ROLES:
        guess = did_you_mean(role, ROLES) if isinstance(role, str) else ""
        yield f"{at} has the role {role!r}, expected {', '.join(ROLES)}{guess}"
        return
    calls = message.get("tool_calls")
    if calls is None or message.get("content"):
        if "content" not in message:
            yield f"{at} ({role}) has no content"
        elif reason := text_problem(f"the content of {at} ({role})", message["content"]):
            yield reason
    if calls is not None:
        yield from _of_calls(at, role, calls, tools)


def _of_calls(at: str, role: str, calls: Any, tools: Sequence[Mapping[str, Any]] | None) -> Iterator[str]:
    if role != "assistant":
        yield f"{at} ({role}) calls tools; only the assistant may"
    if not isinstance(calls, list) or not calls:
        yield f"{at}: tool_calls is {'empty' if calls == [] else kind(calls)}, expected a list of calls"
        return
    for call in calls:
        if reason := _of_call(call, tools or ()):
            yield f"{at}: {reason}"


def _of_call(call: Any, tools: Sequence[Mapping[str, Any]]) -> str | None:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return "a tool call has no function name"
    name, schemas = function["name"], {tool_name(tool): tool for tool in tools}
    if name not in schemas:
        return f"calls {name!r}, which is not among its tools{did_you_mean(name, schemas)}"
    try:
        arguments = arguments_of(function)
    except ValueError as error:
        return f"the arguments of {name!r} are not JSON: {error}"
    if not isinstance(arguments, dict):
        return f"the arguments of {name!r} are {kind(arguments)}, expected an object"
    return _against_schema(name, arguments, _function(schemas[name]).get("parameters") or {})


def arguments_of(function: Mapping[str, Any]) -> Any:
    """A call's arguments; OpenAI's form writes them as a text of JSON. Raises ValueError where that isn't any."""
    given = function.get("arguments", {})
    return json.loads(given) if isinstance(given, str) else given


def _against_schema(name: str, arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str | None:
    validator = _validator(json.dumps(parameters, sort_keys=True))
    errors = sorted(validator.iter_errors(arguments), key=lambda error: list(map(str, error.absolute_path)))
    if not errors:
        return None
    place = ".".join(map(str, errors[0].absolute_path))
    return f"the arguments of {name!r} don't satisfy its schema: {place and f'{place}: '}{errors[0].message}"


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for

    parsed = json.loads(schema)
    return validator_for(parsed)(parsed)


def tools_problem(tools: Any) -> str | None:
    """Why this is no list of tools with valid JSON schemas, or None."""
    if not isinstance(tools, list):
        return f"'tools' is {kind(tools)}, expected a list of tools"
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool, dict) or not isinstance(tool_name(tool), str):
            return f"tool {number} has no name"
        if reason := _schema_problem(json.dumps(_function(tool).get("parameters") or {}, sort_keys=True)):
            return f"the parameters of tool {tool_name(tool)!r} are no JSON schema: {reason}"
    return None


@lru_cache(maxsize=1024)
def _schema_problem(schema: str) -> str | None:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    parsed = json.loads(schema)
    try:
        validator_for(parsed).check_schema(parsed)
    except SchemaError as error:
        return str(error.message)
    return None


def tool_name(tool: Mapping[str, Any]) -> Any:
    """The name of a tool, in OpenAI's form or bare."""
    return _function(tool).get("name")


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = tool.get("function", tool)
    return inner if isinstance(inner, Mapping) else {}


def _turns(messages: Sequence[Message]) -> Iterator[str]:
    """Turns that don't follow one another as a conversation's do."""
    before = ""
    for number, message in enumerate(messages, 1):
        role = str(message["role"])
        if role not in _AFTER[before]:
            after = f"after {'a call of tools' if before == 'call' else before}" if before else "at the beginning"
            yield f"message {number} is the {role}'s {after}, expected {' or '.join(_AFTER[before])}"
            return
        before = "call" if message.get("tool_calls") else role
