"""Tools whose arguments are texts, and what they answer: short, whatever a model wrote or its program printed."""

import json
from collections.abc import Mapping
from typing import Any

from pipelines.environments.environment import Tool
from pipelines.errors import DataError

SEED = "environment_seed"  # of a row's `kept`: what the world is made from

NOTHING = "(no output)"  # a message may not be empty


class Refused(Exception):
    """What an environment won't do; nothing has changed."""


def text_tool(description: str, name: str, **parameters: str) -> Tool:
    """A tool whose parameters, all of them required, are texts; each is given with what it is."""
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def text_of(arguments: Any, parameter: str, longest: int) -> str:
    """The only argument of a tool. Raises Refused where it isn't the only one, no text, or too long."""
    if not isinstance(arguments, dict):
        raise Refused("arguments: expected an object")
    if parameter not in arguments:
        raise Refused(f"missing {parameter}")
    if len(arguments) > 1:
        raise Refused("unexpected argument")
    value = arguments[parameter]
    if not isinstance(value, str):
        raise Refused(f"{parameter}: expected a text")
    if len(value) > longest:
        raise Refused(f"{parameter}: more than {longest} characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise Refused(f"{parameter}: not a text")
    return value


def refusal(text: str, output: str = "") -> str:
    """An error as the model is told it: JSON of `error` and, where there is any, `output`."""
    told = {"error": text, **({"output": output} if output else {})}
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False)


def shortened(text: str, most: int) -> str:
    """The text, or its beginning with how much was left out."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most} more)"


def seed_of(row: Mapping[str, Any]) -> str:
    """The seed that a row keeps. Raises DataError where it keeps none."""
    kept = row.get("kept")
    seed = kept.get(SEED) if isinstance(kept, Mapping) else None
    if not isinstance(seed, str) or not seed:
        raise DataError(f"{row.get('source', 'a row')}: kept holds no {SEED}, expected a text, got {seed!r}")
    return seed
