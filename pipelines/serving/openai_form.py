"""OpenAI's chat completions, from the server's side: what a request asks, and what an answer looks like.

Answers are greedy, as they were evaluated. A field that would change an answer in a way that was never evaluated is
refused by name, and so is one that isn't known: what is read over changes answers silently.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.environments.calls import turn

MOST_STOPS = 4  # as OpenAI's own
# They change no greedy answer, or only say who asks.
HARMLESS = ("seed", "top_p", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
READ = ("model", "messages", "tools", "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options")
READ_TOO = ("logprobs", "temperature", "tool_choice", "parallel_tool_calls")
# Fields that are taken with one value: the one under which nothing changes.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
ROLES = ("system", "developer", "user", "assistant", "tool")


class BadRequest(Exception):
    """A request that can't be answered: OpenAI's form of an error, with its HTTP status."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def body(self) -> dict[str, Any]:
        """What a client reads."""
        return error_body(str(self), self.status, self.param, self.code)


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be answered; `limit` is None where it leaves the number of tokens to the version."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    limit: int | None
    stop: tuple[str, ...]
    stream: bool
    counted: bool  # whether a stream ends with the usage
    logprobs: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said; `logprobs` are the (token's text, log-probability) of each token, where they were asked."""

    text: str
    prompt_tokens: int
    num_tokens: int
    finished: bool
    logprobs: list[tuple[str, float]] | None = None


def read(body: Any) -> Asked:
    """The request of a body. Raises BadRequest naming the field."""
    if not isinstance(body, dict):
        raise BadRequest("expected a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    _check_fields(given)
    if given.get("temperature", 0) != 0:
        raise BadRequest(
            f"temperature: expected 0 (answers are greedy, as evaluated), got {given['temperature']}", "temperature"
        )
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise BadRequest("tool_choice: expected auto or none: nothing forces a call", "tool_choice")
    return Asked(
        model=_text(given, "model"),
        messages=_messages(given.get("messages")),
        tools=None if choice == "none" else _tools(given.get("tools")),
        limit=_limit(given),
        stop=_stop(given.get("stop", [])),
        stream=_flag(given, "stream"),
        counted=bool((given.get("stream_options") or {}).get("include_usage")),
        logprobs=_flag(given, "logprobs"),
    )


def _check_fields(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise BadRequest(f"{name}: expected {NEUTRAL[name][0]!r}, as evaluated, got {value!r}", name)
        if name not in (*HARMLESS, *READ, *READ_TOO, *NEUTRAL):
            raise BadRequest(f"{name}: not supported", name, "unsupported_parameter")


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{name}: expected a text, got {value!r}", name)
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{name}: expected true or false, got {value!r}", name)
    return value


def _limit(given: Mapping[str, Any]) -> int | None:
    name = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    value = given.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise BadRequest(f"{name}: expected an integer of 1 or more, got {value!r}", name)
    return value


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest(f"stop: expected a text or at most {MOST_STOPS} of them, got {value!r}", "stop")
    return tuple(stops)


def _tools(value: Any) -> list[dict[str, Any]] | None:
    if value is None or value == []:
        return None
    sound = isinstance(value, list) and all(
        isinstance(tool, dict)
        and isinstance(tool.get("function"), dict)
        and isinstance(tool["function"].get("name"), str)
        for tool in value
    )
    if not sound:
        raise BadRequest("tools: expected a list of functions with names", "tools")
    return list(value)


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadRequest("messages: expected a list of messages", "messages")
    return [_message(number, message) for number, message in enumerate(value)]


def _message(number: int, message: Any) -> dict[str, Any]:
    """As the template takes it: contents are texts, arguments of calls are objects."""
    at = f"messages.{number}"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadRequest(f"{at}.role: expected one of {', '.join(ROLES)}", at)
    found = {name: value for name, value in message.items() if value is not None}
    found["content"] = _content(at, found.get("content", ""))
    if calls := found.get("tool_calls"):
        if not isinstance(calls, list):
            raise BadRequest(f"{at}.tool_calls: expected a list of calls", at)
        found["tool_calls"] = [_call(at, call) for call in calls]
    return found


def _content(at: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        raise BadRequest(f"{at}.content: expected a text or parts of type text", at)
    return "".join(part["text"] for part in parts)


def _call(at: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"{at}.tool_calls: a call has no function with a name", at)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise BadRequest(f"{at}.tool_calls: the arguments of {function['name']} aren't JSON", at) from None
    # The id stays out: templates are rendered as in training, where calls have none.
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


@dataclass(frozen=True)
class Writer:
    """The replies to one request: `named` is what the model is called, `fingerprint` is its version's content."""

    named: str
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, asked: Asked, answer: Answer) -> dict[str, Any]:
        """The chat completion."""
        message, reason = said(answer, asked.tools)
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": logprobs_of(answer)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(answer)}

    def piece(self, delta: Mapping[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        """A chunk of a stream."""
        choice = {"index": 0, "delta": dict(delta), "finish_reason": reason, "logprobs": logprobs}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def count(self, answer: Answer) -> dict[str, Any]:
        """The chunk that tells the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answer)}

    def _head(self, kind: str) -> dict[str, Any]:
        told = {"id": self.id, "object": kind, "created": self.created, "model": self.named}
        return {**told, "system_fingerprint": self.fingerprint}


def said(answer: Answer, tools: Sequence[Mapping[str, Any]] | None) -> tuple[dict[str, Any], str]:
    """The assistant's message and why it ends; where tools are offered, calls in the text become OpenAI's."""
    reason = "stop" if answer.finished else "length"
    message = turn(answer.text, tools) if tools else None
    if message is None or not message.get("tool_calls"):
        return {"role": "assistant", "content": answer.text}, reason
    calls = [_written(call, number) for number, call in enumerate(message["tool_calls"])]
    return {"role": "assistant", "content": message.get("content") or None, "tool_calls": calls}, "tool_calls"


def _written(call: Mapping[str, Any], number: int) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    called = {"name": function["name"], "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "index": number, "type": "function", "function": called}


def usage(answer: Answer) -> dict[str, int]:
    """Tokens, as OpenAI counts them; the one that ends the answer is among them."""
    counts = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.num_tokens}
    return {**counts, "total_tokens": answer.prompt_tokens + answer.num_tokens}


def logprobs_of(answer: Answer) -> dict[str, Any] | None:
    """Each token's log-probability, where they were asked."""
    if answer.logprobs is None:
        return None
    return {"content": [token_logprob(text, value) for text, value in answer.logprobs], "refusal": None}


def token_logprob(text: str, value: float) -> dict[str, Any]:
    """A token's entry in `logprobs.content`."""
    return {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
