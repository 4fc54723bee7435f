"""What an environment is: tools over a state that only they change."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

Tool = dict[str, Any]
GOAL = "goal"  # of a row's `kept`: the calls that change the state as they should, as [[name, arguments], ...]


@runtime_checkable
class Environment(Protocol):
    """One episode's world. The same row and the same calls lead to the same state.

    `reset` is given a row's fields by name and begins its episode, whatever went on before; `call` answers in text
    whatever a model writes as name and arguments; `tools` are the tools as OpenAI's form writes them, in the order of
    their names; `state` is everything that an answer is judged by, in the types of JSON.
    """

    def reset(self, **row: Any) -> None: ...

    def call(self, name: str, arguments: Any) -> str: ...

    def tools(self) -> list[Tool]: ...

    def state(self) -> Mapping[str, Any]: ...


def digest(state: Mapping[str, Any]) -> str:
    """The state in one word: the first 64 bits, in hex, of the sha256 of its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def tool(description: str, name: str, **parameters: str) -> Tool:
    """A tool whose parameters, all of them required, are integers; each is given with what it is."""
    properties = {key: {"type": "integer", "description": text} for key, text in parameters.items()}
    required = {"required": list(parameters)} if parameters else {}
    schema = {"type": "object", "properties": properties, **required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
