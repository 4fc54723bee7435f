"""What a tokenizer needs so that TRL can read calls of tools in what a model writes."""

import json
import re
from typing import Any

from pipelines.errors import UserError

_NAME, _KEY, _VALUE, _ANSWER = "tool_of_probe", "key_of_probe", "value_of_probe", "answer_of_probe"
_ASKED = {"role": "user", "content": "question_of_probe"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}}],
}
_TOLD = {"role": "tool", "name": _NAME, "content": _ANSWER}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "probe",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "probe"}}},
    },
}
_HERMES = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_ASSISTANT = "<|im_start|>assistant\n"


def ready_for_tools(tokenizer: Any) -> None:
    """Sets the `response_template` that the tokenizer's chat template calls for, unless it has one, and lets no text
    of a model's break the parser.

    Calls in the form `<tool_call>{"name": ..., "arguments": ...}</tool_call>` between ChatML's marks (Qwen, Hermes) are
    known here, the templates of other families to TRL. Raises UserError where the template leaves tools out or TRL
    can't train with it.
    """
    _check_tools(tokenizer)
    if getattr(tokenizer, "response_template", None) is None:
        if _writes_hermes(tokenizer):
            tokenizer.response_template = hermes(tokenizer.eos_token)
        else:
            _known_to_trl(tokenizer)
    _check_prefix(tokenizer)
    _guard(tokenizer)


def hermes(end: str) -> dict[str, Any]:
    """The response template, in the form of transformers 5.13 and later, for turns that end in `end`.

    An empty turn and one with thoughts are read as well.
    """
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": _ASSISTANT,
        "fields": {
            "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
            "tool_calls": {
                "open": "<tool_call>",
                "close_pattern": r"</tool_call>\s*",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"close_pattern": rf"{re.escape(end)}\s*", "content": "text"},
        },
    }


def _check_tools(tokenizer: Any) -> None:
    """Raises UserError where a part of a call, its answer or the tools isn't in what the template writes."""
    where = f"model.id: {tokenizer.name_or_path}"
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"{where} has no chat template, so it can't call the tools of task.environment")
    text = _rendered(tokenizer, [_ASKED, _CALL, _TOLD], tools=[_TOOL])
    call = _rendered(tokenizer, [_ASKED, _CALL, _TOLD])
    parts = {"calls of tools": (_NAME, _KEY, _VALUE), "answers of tools": (_ANSWER,)}
    lacking = [what for what, signs in parts.items() if not all(sign in call for sign in signs)]
    if not lacking and text == call:
        lacking = ["the tools that are offered"]
    if lacking:
        raise UserError(f"{where}: its chat template leaves out {' and '.join(lacking)}, which task.environment needs")


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], **further: Any) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **further))
    except (TemplateError, TypeError) as error:
        raise UserError(
            f"model.id: {tokenizer.name_or_path}: its chat template refuses a call of a tool, "
            f"which task.environment needs: {error}"
        ) from error


def _writes_hermes(tokenizer: Any) -> bool:
    text = _rendered(tokenizer, [_ASKED, _CALL])
    found = _HERMES.search(text)
    if found is None or _ASSISTANT not in text:
        return False
    try:
        return bool(json.loads(found.group(1)) == {"name": _NAME, "arguments": {_KEY: _VALUE}})
    except ValueError:
        return False


def _known_to_trl(tokenizer: Any) -> None:
    from trl.chat_template_utils import add_response_schema

    try:
        add_response_schema(tokenizer)
    except ValueError as error:
        raise UserError(
            f"model.id: {tokenizer.name_or_path}: how its chat template writes calls of tools isn't known; "
            "set response_template in its tokenizer_config.json"
        ) from error


def _check_prefix(tokenizer: Any) -> None:
    """Raises UserError where the template writes a turn otherwise once another follows, and TRL has no other one."""
    before = _rendered(tokenizer, [_ASKED, _CALL])
    after = _rendered(tokenizer, [_ASKED, _CALL, _TOLD], add_generation_prompt=True)
    if after.startswith(before):
        return
    from trl.chat_template_utils import get_training_chat_template

    try:
        get_training_chat_template(tokenizer)
    except ValueError as error:
        raise UserError(
            f"model.id: {tokenizer.name_or_path}: its chat template writes earlier turns otherwise once others "
            "follow, and TRL has no training template in its place"
        ) from error


def _guard(tokenizer: Any) -> None:
    """TRL takes a ValueError for a text without calls; brackets nested a thousand deep raise something else."""
    parse = type(tokenizer).parse_response

    def guarded(*args: Any, **settings: Any) -> Any:
        try:
            return parse(tokenizer, *args, **settings)
        except RecursionError as error:
            raise ValueError("the response is nested too deep") from error

    tokenizer.parse_response = guarded
