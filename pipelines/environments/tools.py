"""An environment as TRL takes one: a class whose public methods are its tools."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pipelines.environments import resolve_environment
from pipelines.environments.calls import Call
from pipelines.environments.environment import Environment, Tool
from pipelines.errors import UserError

_TYPES: dict[str, Any] = {
    "integer": int,
    "number": float,
    "string": str,
    "boolean": bool,
    "array": list,
    "object": dict,
}
_RESERVED = ("reset", "get_reward")


class Toolbox:
    """An environment behind `reset` and one method for each of its tools; subclasses know which."""

    _make: Callable[[], Environment]
    _schemas: list[Tool]

    def __init__(self) -> None:
        self._environment = type(self)._make()

    def reset(self, **columns: Any) -> None:
        """Begins the episode of a row that is given by its columns, `kept` as an object or as its JSON."""
        kept = columns.get("kept")
        self._environment.reset(**{**columns, "kept": json.loads(kept) if isinstance(kept, str) else kept})


def answered(box: Toolbox, call: Call) -> tuple[Any, bool]:
    """What a tool answers to a call, and whether that is an error; both in the words of TRL's loop."""
    try:
        if call.name not in _names(box._schemas):
            raise ValueError(f"Tool {call.name} not found.")
        found = getattr(box, call.name)(**call.arguments)
    except Exception as error:  # noqa: BLE001 - whatever a model's call raises is its answer, as in TRL's loop
        return str({"error": str(error)}), True
    return (found if isinstance(found, list) else str(found)), _tells_an_error(found)


def offered(box: type[Toolbox]) -> list[Tool]:
    """The tools as the prompt shows them."""
    return box._schemas


def state_of(box: Toolbox) -> Mapping[str, Any]:
    """The state of the environment behind the tools."""
    return box._environment.state()


def environment_class(name: str) -> type[Toolbox]:
    """The class of a task's environment for `environment_factory` of trl.GRPOTrainer.

    transformers makes the schemas of its methods again as the environment gives them: parameters of JSON's types, each
    with a description. Raises UserError for an environment whose tools can't be written as methods.
    """
    make = resolve_environment(name)
    schemas = make().tools()
    names = _names(schemas)
    if names != sorted(set(names)):
        raise UserError(f"task.environment: {name}: expected tools in the order of their names, got {', '.join(names)}")
    methods = {tool: _method(name, schema["function"]) for tool, schema in zip(names, schemas, strict=True)}
    return type("Tools", (Toolbox,), {"_make": staticmethod(make), "_schemas": schemas, **methods})


def _method(environment: str, function: Mapping[str, Any]) -> Callable[..., Any]:
    """The method that calls a tool."""
    name = function["name"]
    where = f"task.environment: {environment}: the tool {name!r}"
    if not name.isidentifier() or name.startswith("_") or name in _RESERVED:
        raise UserError(f"{where}: expected the name of a public method other than {' and '.join(_RESERVED)}")
    schema = function.get("parameters") or {}
    properties, required = schema.get("properties", {}), schema.get("required", [])
    hints = {key: _hint(f"{where}, parameter {key!r}", value) for key, value in properties.items()}
    _described(where, function)

    def method(self: Toolbox, /, **arguments: Any) -> Any:
        return self._environment.call(name, arguments)

    method.__name__, method.__qualname__ = name, f"Tools.{name}"
    lines = [f"    {key}: {value['description']}" for key, value in properties.items()]
    method.__doc__ = "\n".join([function["description"], *(["", "Args:", *lines] if lines else [])])
    parameters = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=_default(key in required))
        for key, hint in hints.items()
    ]
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = inspect.Signature([receiver, *parameters])  # type: ignore[attr-defined]
    method.__annotations__ = hints  # no return: it would be a part of the schema
    return method


def _default(required: bool) -> Any:
    return inspect.Parameter.empty if required else None


def _hint(where: str, schema: Any) -> Any:
    """The type hint that a parameter's schema is made of again. Raises UserError."""
    if (
        not isinstance(schema, dict)
        or schema.get("type") not in _TYPES
        or set(schema) - {"type", "description", "enum"}
    ):
        raise UserError(f"{where}: expected type (one of {', '.join(_TYPES)}), description and perhaps enum")
    _described(where, schema)
    return Literal[tuple(schema["enum"])] if "enum" in schema else _TYPES[schema["type"]]


def _described(where: str, schema: Mapping[str, Any]) -> None:
    description = schema.get("description")
    if not isinstance(description, str) or not description or description != " ".join(description.split()):
        raise UserError(f"{where}: expected a description in one line, got {description!r}")


def _names(schemas: Sequence[Tool]) -> list[str]:
    return [tool["function"]["name"] for tool in schemas]


def _tells_an_error(answer: Any) -> bool:
    try:
        found = json.loads(answer)
    except (ValueError, TypeError, RecursionError):
        return False
    return isinstance(found, dict) and "error" in found
