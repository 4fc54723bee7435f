"""Chat completions as OpenAI-compatible servers take and give them: the request's fields, the reply's meaning."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.messages import arguments_of
from pipelines.dataset.row import Message
from pipelines.secrets import masked
from pipelines.subjects.subject import Question

OPTIONAL = ("logprobs", "seed")  # an answer is as good without them, so servers may refuse them
TOKENS_PER_MESSAGE = 32  # a template writes a role and marks around each text
TOKENS_PER_REQUEST = 64
TOKENS_FOR_TOOLS = 512  # and explains how tools are called
MOST_OF_A_REASON = 160

_CUT_OFF = ("length", "content_filter")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Garbled(Exception):
    """A reply that isn't a chat completion; the message is the reason, in a few words."""


class NoText(Garbled):
    """A chat completion that holds neither a text nor a call."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are asked. `alone` asks one at a time; a sample's seed is `seed` plus the question's position."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    logprobs: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """What a chat completion says; None where it doesn't. `probability` is the product over the answer's tokens."""

    text: str
    finished: bool
    prompt_tokens: int | None
    num_tokens: int | None
    probability: float | None
    model: str | None
    fingerprint: str | None


def request(model: str, question: Question, asking: Asking, position: int) -> dict[str, Any]:
    """The body of POST chat/completions for the question at `position`."""
    sampled = asking.temperature > 0
    body: dict[str, Any] = {
        "model": model,
        "messages": _wire(question.messages),
        "max_tokens": asking.max_new_tokens,
        "temperature": asking.temperature,
        "seed": asking.seed + position if sampled else asking.seed,
        "stream": False,
    }
    if sampled:
        body["top_p"] = 1.0  # as models on this machine are sampled: nothing is cut off
    if asking.logprobs:
        body["logprobs"] = True
    if question.tools:
        body["tools"] = [
            dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}
            for tool in question.tools
        ]
    return body


def without(body: Mapping[str, Any], refused: Sequence[str]) -> dict[str, Any]:
    """The request without fields that the server refuses; newer servers call `max_tokens` `max_completion_tokens`."""
    found = {name: value for name, value in body.items() if name not in refused}
    if "max_tokens" in refused:
        found["max_completion_tokens"] = body["max_tokens"]
    return found


def blamed(body: Mapping[str, Any], reason: str) -> str | None:
    """The field that a refusal is most likely about: one that it names, else the next optional one; None for none."""
    if "max_tokens" in body and "max_completion_tokens" in reason:
        return "max_tokens"
    sent = [name for name in OPTIONAL if name in body]
    return next((name for name in sent if name in reason), sent[0] if sent else None)


def most_prompt_tokens(body: Mapping[str, Any]) -> int:
    """More tokens than the prompt has: a byte is at least a part of one, and templates add their marks.

    A template with a long system prompt of its own may go over it.
    """
    held = json.dumps([body["messages"], body.get("tools")], ensure_ascii=False).encode("utf-8", "surrogatepass")
    tools = TOKENS_FOR_TOOLS if body.get("tools") else 0
    return len(held) + TOKENS_PER_MESSAGE * len(body["messages"]) + TOKENS_PER_REQUEST + tools


def _wire(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with their calls as OpenAI writes them: numbered, and the arguments a text of JSON."""
    found: list[dict[str, Any]] = []
    open_calls: list[str] = []  # numbers of calls that no tool has answered yet
    for number, message in enumerate(messages):
        sent = {name: value for name, value in message.items() if value is not None}
        if calls := message.get("tool_calls"):
            sent["tool_calls"] = [_wired_call(call, f"call_{number}_{i}") for i, call in enumerate(calls)]
            sent.setdefault("content", "")
            open_calls = [call["id"] for call in sent["tool_calls"]]
        elif message["role"] == "tool":
            answered = open_calls.pop(0) if open_calls else f"call_{number}"
            sent.setdefault("tool_call_id", answered)
        found.append(sent)
    return found


def _wired_call(call: Mapping[str, Any], number: str) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.get("id", number),
        "type": "function",
        "function": {"name": function["name"], "arguments": text},
    }


def read(content: bytes) -> Completion:
    """The reply's first choice. Raises Garbled where the reply is no chat completion, NoText where it says nothing."""
    payload = _json(content)
    choice = _first(payload)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Garbled("the first choice holds no message")
    text = _text(message, choice.get("finish_reason"))
    if _SURROGATE.search(text):
        raise Garbled("the text holds a lone surrogate")
    prompt_tokens, num_tokens = usage(payload)
    return Completion(
        text=text,
        finished=choice.get("finish_reason") not in _CUT_OFF,
        prompt_tokens=prompt_tokens,
        num_tokens=num_tokens,
        probability=_probability(choice.get("logprobs")),
        model=_name(payload.get("model")),
        fingerprint=_name(payload.get("system_fingerprint")),
    )


def charged(content: bytes) -> tuple[int | None, int | None]:
    """(prompt's tokens, answer's tokens) of a reply, whatever else is wrong with it."""
    try:
        return usage(_json(content))
    except Garbled:
        return None, None


def usage(payload: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(prompt's tokens, answer's tokens) as the server counts them; None where it doesn't."""
    held = payload.get("usage")
    counts = held if isinstance(held, dict) else {}
    return _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))


def refusal(content: bytes) -> str:
    """What the body of an HTTP error says, in a few words."""
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        return brief(content.decode("utf-8", "replace"))
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return brief(found if isinstance(found, str) else json.dumps(found))


def brief(text: str) -> str:
    """The text's beginning on one line, without secrets."""
    plain = masked(text[: 8 * MOST_OF_A_REASON])[: 4 * MOST_OF_A_REASON]
    line = " ".join("".join(c if c.isprintable() else " " for c in plain).split())
    return line if len(line) <= MOST_OF_A_REASON else line[: MOST_OF_A_REASON - 3] + "..."


def _json(content: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError):
        raise Garbled(f"no JSON: {brief(content.decode('utf-8', 'replace')) or 'an empty reply'}") from None
    if not isinstance(payload, dict):
        raise Garbled(f"a JSON {type(payload).__name__}, expected an object")
    return payload


def _first(payload: Mapping[str, Any]) -> dict[str, Any]:
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        told = f": {refusal(json.dumps(payload).encode())}" if "error" in payload else ""
        raise Garbled(f"no choices{told}")
    return choices[0]


def _text(message: Mapping[str, Any], finish_reason: object) -> str:
    """The message's text, then its calls."""
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if content is not None and not isinstance(content, str):
        raise Garbled(f"the content is of type {type(content).__name__}, expected text")
    if calls is not None and not isinstance(calls, list):
        raise Garbled(f"tool_calls is of type {type(calls).__name__}, expected a list")
    if content is None and not calls:
        raise NoText(f"null content (finish_reason {brief(str(finish_reason))})")
    spoken = [content] if isinstance(content, str) and (content or not calls) else []
    return "\n".join([*spoken, *(_call(call) for call in calls or ())])


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Garbled("a tool call holds no function's name")
    try:
        arguments = arguments_of(function)
    except (ValueError, RecursionError):
        arguments = function["arguments"]  # the model's mistake, for the verifier to see
    held = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{held}</tool_call>"


def _probability(logprobs: Any) -> float | None:
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not tokens:
        return None
    found = [token.get("logprob") if isinstance(token, dict) else None for token in tokens]
    known = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(known) < len(found) or not all(math.isfinite(value) for value in known):
        return None
    return min(1.0, math.exp(math.fsum(known)))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _name(value: Any) -> str | None:
    return brief(value) if isinstance(value, str) and value else None
