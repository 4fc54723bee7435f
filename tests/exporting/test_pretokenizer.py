"""Which tokenizers llama.cpp cuts text like."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.paths import PROJECT
from pipelines.exporting.pretokenizer import named

SHIPPED = PROJECT / "data/models/tiny/tokenizer.json"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def shipped() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return found


def test_the_shipped_tokenizer_cuts_like_qwen2() -> None:
    assert named(SHIPPED) == "qwen2"


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (BYTES, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [BYTES]}, "gpt-2"),
        ({**BYTES, "add_prefix_space": True}, None),
        ({"type": "Whitespace"}, None),
        (None, None),
    ],
)
def test_a_plain_one_and_strange_ones(changed: dict[str, Any] | None, name: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**shipped(), "pre_tokenizer": changed}), encoding="utf-8")
    assert named(path) == name


@pytest.mark.parametrize(("key", "value"), [("behavior", "Removed"), ("invert", True), ("pattern", {"Regex": "\\s+"})])
def test_the_same_expression_used_otherwise_is_another(key: str, value: object, tmp_path: Path) -> None:
    changed = shipped()
    changed["pre_tokenizer"]["pretokenizers"][0][key] = value
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert named(path) is None
