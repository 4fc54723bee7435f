"""Conversations become the text and tokens that transformers makes of them, without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Model
from pipelines.errors import UserError
from pipelines.policy.base import LIGHT, load_template_tokenizer
from pipelines.policy.template import marked_texts, render, texts

TINY = PROJECT / "data/models/tiny"
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"q": "caffè"}}}
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Where is my card?"}]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    ASKED,
    [{"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "card_arrival"}],
    [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "{}"}],
    [*ASKED, {"role": "assistant", "content": ""}, *ASKED, {"role": "assistant", "content": "ü\n"}],
]
TOOLS = [None, None, [TOOL], None]


def tiny() -> Model:
    return compose([]).config.model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.mark.parametrize("prompt", [True, False])
def test_texts_and_tokens_are_those_of_the_template(tokenizer: Any, prompt: bool) -> None:
    pairs = list(zip(CONVERSATIONS, TOOLS, strict=True))
    one_by_one = [
        tokenizer.apply_chat_template(c, tools=t, tokenize=False, add_generation_prompt=prompt) for c, t in pairs
    ]
    assert texts(tokenizer, CONVERSATIONS, TOOLS, {}, prompt) == one_by_one
    ids = [
        tokenizer.apply_chat_template(c, tools=t, add_generation_prompt=prompt, return_dict=True)["input_ids"]
        for c, t in pairs
    ]
    assert render(tokenizer, CONVERSATIONS, TOOLS, {}, prompt) == ids


def test_marks_are_what_the_assistant_writes(tokenizer: Any) -> None:
    found = marked_texts(tokenizer, CONVERSATIONS, TOOLS, {})
    assert [text for text, _ in found] == texts(tokenizer, CONVERSATIONS, TOOLS, {}, prompt=False)
    assert [[text[start:end] for start, end in ranges] for text, ranges in found] == [
        [],
        ["card_arrival<|im_end|>"],
        ['<tool_call>\n{"name": "find", "arguments": {"q": "caffè"}}\n</tool_call><|im_end|>'],
        ["<|im_end|>", "ü\n<|im_end|>"],
    ]


def test_switches_reach_the_template(tokenizer: Any) -> None:
    switched = AutoTokenizer.from_pretrained(TINY, chat_template="{{ 'on' if thinking else 'off' }}{{ eos_token }}")
    assert texts(switched, [ASKED], [None], {"thinking": True}, prompt=False) == ["on<|im_end|>"]
    assert marked_texts(switched, [ASKED], [None], {}) == [("off<|im_end|>", [])]


def test_a_null_is_no_key_for_the_template(tokenizer: Any) -> None:
    keyed = AutoTokenizer.from_pretrained(
        TINY, chat_template="{% for m in messages %}{{ m.keys() | list }}{% endfor %}"
    )
    turn = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    expected = keyed.apply_chat_template(turn, tokenize=False)
    assert marked_texts(keyed, [turn], [None], {}) == [(expected, [])]
    assert "content" not in expected


def test_no_torch_is_needed_to_render_and_count() -> None:
    code = (
        "import sys\n"
        "from pipelines.config.compose import compose\n"
        "from pipelines.policy import base, mask, template\n"
        "tokenizer = base.load_template_tokenizer(compose([]).config.model)\n"
        "ids = template.render(tokenizer, [[{'role': 'user', 'content': 'Hi'}]], [None], {}, prompt=True)\n"
        "print(ids, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    expected = render(AutoTokenizer.from_pretrained(TINY), [[{"role": "user", "content": "Hi"}]], [None], {}, True)
    assert done.stdout == f"{expected} False\n"


def test_the_light_tokenizer_is_the_other_one() -> None:
    light, other = load_template_tokenizer(tiny()), AutoTokenizer.from_pretrained(TINY)
    assert light.chat_template == other.chat_template
    assert light.special_tokens_map == other.special_tokens_map
    assert light.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    lines = [line for line in (TINY / "README.md").read_text(encoding="utf-8").splitlines() if line]
    assert light(lines)["input_ids"] == other(lines)["input_ids"]


def declared(folder: Path, kind: str, name: str) -> Model:
    """The shipped tokenizer as a model of another architecture that names another class."""
    for file in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(TINY / file, folder)
    for file, changes in (("config.json", {"model_type": kind}), ("tokenizer_config.json", {"tokenizer_class": name})):
        settings = json.loads((TINY / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(settings | changes), encoding="utf-8")
    return tiny().model_copy(update={"id": str(folder), "revision": None})


@pytest.mark.parametrize(("kind", "name"), [*LIGHT, ("qwen2", "TokenizersBackend"), ("llama", "LlamaTokenizer")])
def test_the_class_is_the_one_that_transformers_takes(tmp_path: Path, kind: str, name: str) -> None:
    light = load_template_tokenizer(declared(tmp_path, kind, name))
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert type(light) is type(other)
    assert light.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    model = declared(tmp_path, "qwen3", "TokenizersBackend")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"the tokenizer of .* has no chat template"):
        load_template_tokenizer(model)
