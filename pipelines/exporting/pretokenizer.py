"""The name that llama.cpp has for a tokenizer's way of cutting text into pieces before BPE."""

import json
from pathlib import Path
from typing import Any

_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's src/llama-vocab.cpp: the expressions that each name stands for.
NAMES = {rf"{_HEAD}\p{{N}}{_TAIL}": "qwen2", rf"{_HEAD}\p{{N}}{{1,3}}{_TAIL}": "llama-bpe"}
PLAIN = "gpt-2"  # what a byte-level pre-tokenizer does by itself


def named(tokenizer: Path) -> str | None:
    """The name for a tokenizer.json; None where llama.cpp has none that cuts alike."""
    found = json.loads(tokenizer.read_text(encoding="utf-8"))
    pieces = _pieces(found.get("pre_tokenizer") or {})
    if not pieces or pieces[-1].get("type") != "ByteLevel" or pieces[-1].get("add_prefix_space"):
        return None
    *splits, last = pieces
    if last.get("use_regex", True):
        return None if splits else PLAIN
    if len(splits) != 1 or splits[0].get("type") != "Split":
        return None
    if splits[0].get("behavior") != "Isolated" or splits[0].get("invert"):
        return None
    return NAMES.get(splits[0]["pattern"].get("Regex", ""))


def _pieces(found: dict[str, Any]) -> list[dict[str, Any]]:
    if found.get("type") == "Sequence":
        return list(found["pretokenizers"])
    return [found] if found else []
