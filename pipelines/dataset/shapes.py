"""The shapes that records come in, and how each becomes a prompt with its completion.

A shape is recognised by its field names and shown; records that fit two shapes, or none, are an error that asks
for `records:`. Names: messages as OpenAI writes them, alpaca as Stanford's 52k instructions, sharegpt as FastChat's
`conversations`, preference pairs as TRL's, openai_evals as the samples of OpenAI's evals (`input`, `ideal`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Source
from pipelines.dataset.context import passages
from pipelines.dataset.messages import arguments_of, problems, text_problem, tools_problem
from pipelines.dataset.row import Message
from pipelines.dataset.rows import further_problem
from pipelines.dataset.strict_json import kind

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "call",
    "observation": "tool",
    "tool": "tool",
}
EXAMPLE_ROLES = {"example_user": "user", "example_assistant": "assistant"}


@dataclass(slots=True)
class Draft:
    """A record read as prompt and completion; `written` is the label that the file says, which `exclude` names."""

    prompt: list[Message]
    completion: list[Message]
    answer: str = ""
    label: str | None = None
    written: str = ""
    group: str | None = None
    time: str | None = None
    tools: list[dict[str, Any]] | None = None
    rejected: list[Message] | None = None
    accepted: list[str] | None = None
    context: list[str] | None = None
    kept: dict[str, str] | None = None


class Malformed(Exception):
    """A record that is none of its shape; `reasons` has a line for each fault."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass
class Reader:
    """Reads the records of one source; `shape` is known once the first record was seen."""

    source: Source
    shape: str = "auto"
    recognised: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.shape = "row" if self.source.kind == "rows" else self.source.records
        if self.source.format == "clinc150" or (self.shape == "auto" and self.source.prompt is not None):
            self.shape = "columns"

    def read(self, fields: Mapping[str, Any]) -> Draft:
        """The record as a draft. Raises Malformed."""
        if self.shape == "auto":
            self.shape = recognise(fields)
            self.recognised = True
        draft = SHAPES[self.shape](fields, self.source)
        _add_columns(draft, fields, self.source)
        return draft


def recognise(fields: Mapping[str, Any]) -> str:
    """The one shape that the field names fit. Raises Malformed where none or several do."""
    fitting = [shape for shape, names in SIGNS.items() if set(names) <= fields.keys()]
    if "row" in fitting:
        return "row"
    if "preference" in fitting and "prompt_completion" not in fitting:
        fitting = ["preference"]
    if "prompt_completion" in fitting and "prompt_answer" in fitting:
        fitting.remove("prompt_answer")  # its answer is what verify compares the completion with
    if len(fitting) == 1:
        return fitting[0]
    held = f"the fields {', '.join(map(repr, fields)) or 'none'}"
    if not fitting:
        known = ", ".join(shape for shape in SIGNS if shape != "row")
        raise Malformed(
            f"not recognised by {held}; set records to one of {known}, or prompt and answer to column names"
        )
    raise Malformed(f"fits {' and '.join(fitting)} by {held}; set records to one of them")


# --- one function a shape -----------------------------------------------------------------------


def _columns(fields: Mapping[str, Any], source: Source) -> Draft:
    names = [n for n in (source.prompt, source.completion, source.answer, source.system) if n]
    found = {name: _text(fields, name) for name in dict.fromkeys(names)}
    if reasons := [reason for value, reason in found.values() if reason]:
        raise Malformed(*reasons)
    system = [{"role": "system", "content": found[source.system][0]}] if source.system else []
    answer = found[source.answer][0].strip() if source.answer else source.constant_answer or ""
    completion = found[source.completion][0] if source.completion else answer
    return Draft(
        prompt=[*system, {"role": "user", "content": found[source.prompt or ""][0]}],
        completion=[{"role": "assistant", "content": completion}],
        answer=answer or completion,
        written=answer,
    )


def _messages(fields: Mapping[str, Any], source: Source) -> Draft:
    tools = _tools(fields, source)
    return _parted(_checked(fields, "messages", tools), tools)


def _prompt_completion(fields: Mapping[str, Any], source: Source) -> Draft:
    tools = _tools(fields, source)
    prompt, completion = _side(fields, "prompt", "user"), _side(fields, "completion", "assistant")
    _check([*prompt, *completion], tools, "prompt and completion")
    _check_sides(prompt, completion, "completion")
    return Draft(_plain(prompt), _plain(completion), answer=_last_text(completion), tools=tools)


def _prompt_answer(fields: Mapping[str, Any], source: Source) -> Draft:
    prompt = _side(fields, "prompt", "user")
    _check(prompt, None, "prompt")
    return Draft(prompt, [], answer=_short(fields, "answer"))


def _alpaca(fields: Mapping[str, Any], source: Source) -> Draft:
    instruction, output = (_text(fields, name) for name in ("instruction", "output"))
    given = fields.get("input")
    reasons = [reason for _, reason in (instruction, output) if reason]
    if given is not None and not isinstance(given, str):
        reasons.append(f"'input' is {kind(given)}, expected text")
    if reasons:
        raise Malformed(*reasons)
    asked = f"{instruction[0]}\n\n{given}" if given and given.strip() else instruction[0]
    system = fields.get("system")
    before = [{"role": "system", "content": system}] if system else []
    messages = [*before, {"role": "user", "content": asked}, {"role": "assistant", "content": output[0]}]
    _check(messages, None, "alpaca")
    return Draft(messages[:-1], messages[-1:], answer=output[0])


def _sharegpt(fields: Mapping[str, Any], source: Source) -> Draft:
    turns, tools = fields.get("conversations"), _tools(fields, source)
    if not isinstance(turns, list) or not turns:
        raise Malformed(f"'conversations' is {kind(turns) if turns != [] else 'empty'}, expected a list of turns")
    messages = [_sharegpt_turn(number, turn) for number, turn in enumerate(turns, 1)]
    if fields.get("system"):
        messages.insert(0, {"role": "system", "content": fields["system"]})
    _check(messages, tools, "conversations")
    return _parted(messages, tools)


def _sharegpt_turn(number: int, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise Malformed(f"turn {number} is {kind(turn)}, expected an object with from and value")
    if "from" not in turn:
        raise Malformed(f"turn {number} has no role: no field 'from'")
    role = SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        guess = did_you_mean(str(turn["from"]), SHAREGPT_ROLES)
        raise Malformed(f"turn {number} is from {turn['from']!r}, expected {', '.join(SHAREGPT_ROLES)}{guess}")
    if role != "call":
        return {"role": role, "content": turn.get("value")}
    try:
        call = json.loads(turn.get("value", ""))
    except (ValueError, TypeError):
        raise Malformed(f"turn {number} calls a function, and its value is not JSON") from None
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}


def _preference(fields: Mapping[str, Any], source: Source) -> Draft:
    if "prompt" in fields:
        prompt = _side(fields, "prompt", "user")
        chosen, rejected = (_side(fields, name, "assistant") for name in ("chosen", "rejected"))
    else:
        prompt, chosen, rejected = _shared_start(*(_conversation(fields, name) for name in ("chosen", "rejected")))
    if chosen == rejected:
        raise Malformed("'chosen' and 'rejected' are the same")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        _check([*prompt, *side], None, f"prompt and {name}")
        _check_sides(prompt, side, name)
    return Draft(prompt, chosen, answer=_last_text(chosen), rejected=rejected)


def _shared_start(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    pairs = zip(chosen, rejected, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _openai_evals(fields: Mapping[str, Any], source: Source) -> Draft:
    """One sample of an eval that matches its answer with `ideal`, or with any of several."""
    asked = _side(fields, "input", "user")
    prompt = [_example_turn(message) for message in asked]
    ideal = fields.get("ideal")
    if isinstance(ideal, list) and ideal:
        numbered = {f"ideal {number}": text for number, text in enumerate(ideal, 1)}
        right = [_short(numbered, name) for name in numbered]
    else:
        right = [_short(fields, "ideal")]
    completion = [{"role": "assistant", "content": right[0]}]
    _check([*prompt, *completion], None, "input and ideal")
    accepted = [text for text in dict.fromkeys(right) if text != right[0]]
    return Draft(prompt, completion, answer=right[0], accepted=accepted or None)


def _example_turn(message: Any) -> Any:
    """A shot is a system message that its `name` says to be the user's or the assistant's."""
    if not isinstance(message, dict) or message.get("name") not in EXAMPLE_ROLES:
        return message
    rest = {name: value for name, value in message.items() if name != "name"}
    return {**rest, "role": EXAMPLE_ROLES[message["name"]]}


def _row(fields: Mapping[str, Any], source: Source) -> Draft:
    """What another prepare wrote, which may have been edited since."""
    faults = [f"no field {name!r}{did_you_mean(name, fields)}" for name in SIGNS["row"] if name not in fields]
    faults += [
        f"{name!r} is {kind(fields[name])}, expected text"
        for name in ("answer", "label", "group")
        if not isinstance(fields.get(name, ""), str)
    ]
    given = {name: fields[name] for name in ("accepted", "context", "kept") if fields.get(name) is not None}
    if further := further_problem(given):
        faults.append(further)
    if faults:
        raise Malformed(*faults)
    tools = _tools(fields, source)
    completion = [] if fields["completion"] == [] else _conversation(fields, "completion")
    _check([*_conversation(fields, "prompt"), *completion], tools, "prompt and completion")
    return Draft(
        prompt=fields["prompt"],
        completion=fields["completion"],
        answer=fields["answer"],
        label=fields["label"],
        written=fields["label"],
        group=fields["group"],
        tools=tools,
        rejected=fields.get("rejected"),
        **given,
    )


SHAPES: dict[str, Callable[[Mapping[str, Any], Source], Draft]] = {
    "columns": _columns,
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "prompt_answer": _prompt_answer,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "preference": _preference,
    "openai_evals": _openai_evals,
    "row": _row,
}
# The fields that each shape is recognised by.
SIGNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "preference": ("chosen", "rejected"),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "prompt_answer": ("prompt", "answer"),
    "openai_evals": ("input", "ideal"),
    "row": ("id", "task", "prompt", "completion", "answer", "label", "source", "group"),
}


# --- parts of a record --------------------------------------------------------------------------


def _add_columns(draft: Draft, fields: Mapping[str, Any], source: Source) -> None:
    """What columns beside the conversation say: answer, label, group, time."""
    if source.answer and not draft.written:
        draft.answer = _short(fields, source.answer)
    if source.constant_answer and not draft.answer:
        draft.answer = source.constant_answer
    if source.format == "clinc150":
        draft.written = _short(fields, "intent")
    if source.label:
        draft.label = draft.written = _short(fields, source.label)
    if source.group:
        draft.group = _short(fields, source.group)
    if source.time:
        draft.time = _short(fields, source.time)
    _add_context(draft, fields, source)
    _add_kept(draft, fields, source)


def _add_context(draft: Draft, fields: Mapping[str, Any], source: Source) -> None:
    if source.context is None:
        return
    if source.context not in fields:
        raise Malformed(f"no field {source.context!r}{did_you_mean(source.context, fields)}")
    try:
        draft.context = passages(source.context, fields[source.context])
    except ValueError as error:
        raise Malformed(str(error)) from None


def _add_kept(draft: Draft, fields: Mapping[str, Any], source: Source) -> None:
    """Columns that stay with the row, beside those that an earlier prepare kept."""
    before = draft.kept or {}
    kept = {name: before[name] if name in before else _value(fields, name) for name in source.keep}
    draft.kept = {**before, **kept} or None


def _value(fields: Mapping[str, Any], name: str) -> str:
    """A text, a number, true, false or a list as it is written, "" where there is none. Raises Malformed."""
    if name not in fields:
        raise Malformed(f"no field {name!r}{did_you_mean(name, fields)}")
    value = fields[name]
    if isinstance(value, bool | int | float | list):
        return json.dumps(value, ensure_ascii=False)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{name!r} is {kind(value)}, expected text, a number, true, false or a list")
    if reason := text_problem(repr(name), value):
        raise Malformed(reason)
    return value.strip()


def _text(fields: Mapping[str, Any], name: str) -> tuple[str, str | None]:
    """(text, reason): one of them says something."""
    if name not in fields:
        return "", f"no field {name!r}{did_you_mean(name, fields)}"
    reason = text_problem(repr(name), fields[name])
    return ("", reason) if reason else (fields[name], None)


def _short(fields: Mapping[str, Any], name: str) -> str:
    """A text, or a number as it is written. Raises Malformed."""
    value = fields.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    text, reason = _text(fields, name)
    if reason:
        raise Malformed(reason)
    return text.strip()


def _side(fields: Mapping[str, Any], name: str, role: str) -> list[Message]:
    """A prompt or completion: a text, or messages."""
    value = fields.get(name)
    if isinstance(value, list):
        return _conversation(fields, name)
    text, reason = _text(fields, name)
    if reason:
        raise Malformed(reason)
    return [{"role": role, "content": text}]


def _conversation(fields: Mapping[str, Any], name: str) -> list[Message]:
    value = fields.get(name)
    if not isinstance(value, list) or not value:
        raise Malformed(f"{name!r} is {'empty' if value == [] else kind(value)}, expected a list of messages")
    return value


def _checked(fields: Mapping[str, Any], name: str, tools: list[dict[str, Any]] | None) -> list[Message]:
    if name not in fields:
        raise Malformed(f"no field {name!r}{did_you_mean(name, fields)}")
    _check(fields[name], tools, name)
    return list(fields[name])


def _check(messages: Any, tools: list[dict[str, Any]] | None, name: str) -> None:
    if reasons := problems(messages, tools, name):
        raise Malformed(*reasons)


def _check_sides(prompt: list[Message], completion: list[Message], name: str) -> None:
    """Raises Malformed where one side lacks its part of the conversation."""
    if not prompt:
        raise Malformed("'chosen' and 'rejected' share no prompt")
    for end, at in (("begins", 0), ("ends", -1)):
        if not completion or completion[at]["role"] != "assistant":
            found = (
                f"{end} with a message of the {completion[at]['role']}" if completion else "holds nothing of its own"
            )
            raise Malformed(f"{name!r} {found}, expected the assistant's answer")


def _tools(fields: Mapping[str, Any], source: Source) -> list[dict[str, Any]] | None:
    name = source.tools or "tools"
    value = fields.get(name)
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except ValueError as error:
            raise Malformed(f"{name!r} is text that is not JSON: {error}") from None
    if value in (None, [], ""):
        return None
    if reason := tools_problem(value):
        raise Malformed(reason)
    return list(value)


def _parted(messages: list[Message], tools: list[dict[str, Any]] | None) -> Draft:
    """Prompt and completion of a conversation: what follows the last user's turn is the completion."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise Malformed("no message is the user's")
    prompt, completion = messages[: last + 1], messages[last + 1 :]
    if not completion or completion[-1]["role"] != "assistant":
        raise Malformed(f"the last message is the {messages[-1]['role']}'s, expected an answer of the assistant")
    return Draft(_plain(prompt), _plain(completion), answer=_last_text(completion), tools=tools)


def _plain(messages: list[Message]) -> list[Message]:
    """Calls with their arguments as objects, which is what chat templates expect."""
    return [
        {**m, "tool_calls": [_call(call) for call in m["tool_calls"]]} if m.get("tool_calls") else m for m in messages
    ]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", call))
    around = {"type": "function", **call} if "function" in call else {"type": "function"}
    return {**around, "function": {**function, "arguments": arguments_of(function)}}


def _last_text(completion: list[Message]) -> str:
    return str(completion[-1].get("content") or "") if completion else ""
