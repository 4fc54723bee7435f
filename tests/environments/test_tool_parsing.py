"""Tokenizers made ready for tools, and that evaluation reads a turn as TRL does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.paths import PROJECT
from pipelines.environments.bank import Bank
from pipelines.environments.calls import turn
from pipelines.environments.tools import environment_class, offered
from pipelines.errors import UserError
from pipelines.policy.tool_parsing import ready_for_tools

MOVE = {"name": "transfer", "arguments": {"source": 5932, "target": 7499, "amount": 50}}
ASKED = [{"role": "user", "content": "Move it."}]
MakeTokenizer = Callable[..., Any]


@pytest.fixture(scope="module")
def make_tokenizer() -> MakeTokenizer:
    """The shipped tokenizer, with another chat template if one is given."""
    from transformers import AutoTokenizer

    def make(template: str | None = None) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")
        if template is not None:
            tokenizer.chat_template = template
        return tokenizer

    return make


def trl_template(name: str) -> str:
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def wrapped(*calls: Any, between: str = "\n") -> str:
    return between.join(
        f"<tool_call>\n{call if isinstance(call, str) else json.dumps(call)}\n</tool_call>" for call in calls
    )


TURNS = [
    "Done.",
    "",
    "  spaces  ",
    wrapped(MOVE),
    wrapped(MOVE, MOVE),
    wrapped(MOVE, MOVE, between=" then "),
    "I look first.\n" + wrapped({"name": "show", "arguments": {}}),
    wrapped({"name": "show", "arguments": {}}) + "\nLooking.",
    wrapped({"name": "show"}),
    wrapped({"name": "show", "arguments": None}),
    wrapped({"name": "show", "arguments": [1, 2]}),
    wrapped({"name": "show", "arguments": "all"}),
    wrapped({"name": "close", "arguments": {"x": "1"}}),
    wrapped({"name": 7, "arguments": {}}),
    wrapped({"arguments": {}}),
    wrapped(MOVE, {"arguments": {}}),
    wrapped("[1]"),
    wrapped("null"),
    wrapped("not JSON"),
    wrapped('{"name": "show", "arguments": {}'),
    wrapped('{"name": "freeze", "arguments": {"card": NaN}}'),
    wrapped('{"name": "freeze", "arguments": {"card": 1, "card": 2}}'),
    wrapped('{"name": "freeze", "arguments": {"card": ' + "9" * 60 + "}}"),
    *(
        wrapped({"name": "freeze", "arguments": {"card": text}})
        for text in ("3970", " 3970 ", "3970.0", "39.5", "5e1", "1_000", "x", "", "true", "null", "inf", "nan", "[1]")
    ),
    wrapped({"name": "freeze", "arguments": {"card": ["1", 2, "x"]}}),
    "<tool_call>\n" + json.dumps(MOVE),
    "<tool_call></tool_call>",
    "</tool_call>" + wrapped(MOVE),
    "<tool_call>" + wrapped(MOVE),
    "<think>shall I?</think>\n" + wrapped(MOVE),
    "<think>" + wrapped(MOVE),
    "<think>" + wrapped(MOVE) + "</think>No.",
    "<think></think>Done.",
    "Done.</think>",
    wrapped("[" * 3000 + "]" * 3000),
]


@pytest.mark.parametrize("text", TURNS, ids=lambda text: f"{text[:50]!r}")
def test_a_turn_is_read_as_trl_reads_it(make_tokenizer: MakeTokenizer, text: str) -> None:
    from trl.chat_template_utils import parse_response

    tokenizer = make_tokenizer()
    ready_for_tools(tokenizer)
    box = environment_class("bank")()
    methods = [getattr(box, tool["function"]["name"]) for tool in offered(type(box))]
    prompt = tokenizer.apply_chat_template(ASKED, tools=methods, add_generation_prompt=True, return_dict=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs = parse_response(tokenizer, [*ids, tokenizer.eos_token_id], prefix=prompt, tools=methods)
    ours = turn(text, offered(type(box)))
    assert ours.get("tool_calls") == theirs.get("tool_calls")
    assert json.dumps(ours.get("content")) == json.dumps(theirs["content"])


def test_numbers_and_truth_in_quotes_are_typed_as_transformers_types_them(make_tokenizer: MakeTokenizer) -> None:
    properties = {kind: {"type": kind} for kind in ("integer", "number", "boolean", "array", "object", "string")}
    tools: list[dict[str, Any]] = [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    ]
    tokenizer = make_tokenizer()
    ready_for_tools(tokenizer)
    for value in ("1", "1.5", "2.0", "True", " false ", "0", "[1]", '{"a": 1}', "1e400", "-3", "[", "", "x"):
        text = wrapped({"name": "f", "arguments": dict.fromkeys(properties, value)})
        prefix = "<|im_start|>assistant\n"
        theirs = tokenizer.parse_response(f"{text}<|im_end|>", prefix=prefix, tools=tools)
        assert json.dumps(turn(text, tools)["tool_calls"]) == json.dumps(theirs["tool_calls"]), value


def test_trl_shows_the_model_the_tools_that_the_rows_hold(make_tokenizer: MakeTokenizer) -> None:
    from transformers.utils import get_json_schema

    box = environment_class("bank")()
    methods = [getattr(box, name) for name in ("freeze", "limit", "show", "transfer")]
    assert [json.dumps(get_json_schema(method)) for method in methods] == [json.dumps(tool) for tool in Bank().tools()]
    tokenizer = make_tokenizer()
    shown = [tokenizer.apply_chat_template(ASKED, tools=tools, tokenize=False) for tools in (methods, Bank().tools())]
    assert shown[0] == shown[1]


def test_the_tools_and_the_instruction_leave_room_for_an_episode(make_tokenizer: MakeTokenizer) -> None:
    messages = [{"role": "system", "content": "Look before a transfer."}, *ASKED]
    ids = make_tokenizer().apply_chat_template(messages, tools=Bank().tools(), return_dict=False)
    assert len(ids) < 650  # of 1,024; an episode of two changes takes up to 344


def test_the_shipped_template_keeps_its_prefix(make_tokenizer: MakeTokenizer) -> None:
    from trl.chat_template_utils import is_chat_template_prefix_preserving, supports_tool_calling

    tokenizer = make_tokenizer()
    assert supports_tool_calling(tokenizer)
    assert is_chat_template_prefix_preserving(tokenizer)


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "qwen3_instruct_2507"])
def test_templates_of_qwen_are_known(make_tokenizer: MakeTokenizer, name: str) -> None:
    from trl.chat_template_utils import parse_response

    tokenizer = make_tokenizer(trl_template(name))
    ready_for_tools(tokenizer)
    prompt = tokenizer.apply_chat_template(ASKED, tools=Bank().tools(), add_generation_prompt=True, return_dict=False)
    ids = tokenizer(f"<think>\nwell\n</think>\n\n{wrapped(MOVE)}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert parse_response(tokenizer, ids, prefix=prompt)["tool_calls"] == [{"type": "function", "function": MOVE}]


def test_a_response_template_of_the_tokenizers_own_stays(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    own = {"defaults": {"role": "assistant"}, "fields": {"content": {"content": "text"}}, "start_anchor": "x"}
    tokenizer.response_template = own
    ready_for_tools(tokenizer)
    assert tokenizer.response_template is own


def test_what_was_set_is_saved_and_the_guard_is_not(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    ready_for_tools(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert written["response_template"]["start_anchor"] == "<|im_start|>assistant\n"
    assert "parse_response" not in written


NO_CALLS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
NO_TOOLS = "{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
REFUSING = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
UNKNOWN = "{{ tools }}" + NO_TOOLS


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (NO_CALLS, "leaves out calls of tools"),
        (NO_TOOLS, "leaves out the tools that are offered"),
        (REFUSING, "refuses a call of a tool, which task.environment needs: no tools"),
        (UNKNOWN, "set response_template in its tokenizer_config.json"),
    ],
)
def test_a_template_that_cannot_do_tools_is_named(make_tokenizer: MakeTokenizer, template: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.id: .*data/models/tiny.*{told}"):
        ready_for_tools(make_tokenizer(template))


def test_a_tokenizer_without_a_template_is_named(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"^model\.id: .*has no chat template"):
        ready_for_tools(tokenizer)
