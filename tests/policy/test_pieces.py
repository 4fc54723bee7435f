"""Tokenised in pieces, a text has the tokens that the tokenizer gives it whole."""

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from pipelines.config.paths import PROJECT
from pipelines.policy import pieces as policy
from pipelines.policy.pieces import PATTERNS, PieceTokenizer

TINY = PROJECT / "data/models/tiny"
TURN = ["<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|im_start|>user\n", "<|im_end|>\n"]
ODD = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n",
    "/",
    "'s",
    "'S",
    "12",
    "½",
    "٣",
    "é",
    "e\u0301",
    "\u0301",
    "\u0338",
    "ﬁ",
]
WORDS = [
    "word",
    "Word",
    "can't",
    "(",
    "<<",
    ">>",
    "=",
    "$",
    ".",
    "#### ",
    "日本",
    "🙂",
    "x1",
    "1x",
    "<|im_",
    "|>",
    "_",
    "\x00",
    "\x7f",
]


def tokenizer_with(pattern: str | None = None) -> Any:
    """The shipped tokenizer, its words split by another pattern."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    return tokenizer


def samples(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices([*TURN, *ODD, *WORDS], k=draw.randint(0, 14))) for _ in range(count)]


def check(tokenizer: Any, found: list[str]) -> None:
    pieces = PieceTokenizer(tokenizer)
    for text in found:
        encoded, whole = pieces.encode(text), tokenizer(text, add_special_tokens=False)
        assert encoded.ids == whole["input_ids"], repr(text)
        places = [encoded.token_at(char) for char in range(len(text))]
        assert places == [whole.char_to_token(char) for char in range(len(text))], repr(text)
        for end in range(0, len(text) + 1, 3):
            shared, tail = pieces.tail(text[:end], text, encoded)
            alone = tokenizer(text[:end], add_special_tokens=False)["input_ids"]
            assert [*encoded.ids[:shared], *tail] == alone, (text, end)


@pytest.mark.parametrize("pattern", [None, *sorted(PATTERNS)])
def test_words_are_cut_where_the_pattern_cuts(pattern: str | None) -> None:
    tokenizer = tokenizer_with(pattern)
    assert PieceTokenizer(tokenizer).words
    check(tokenizer, samples(200))


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_no_cut_changes_how_the_pattern_splits(pattern: str) -> None:
    """The shipped vocabulary has a token for each digit and shows no difference in groups of them; the split does."""
    split = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices([*ODD, *WORDS], k=draw.randint(1, 9)))
        pieces = policy.WORDS.findall(text)
        assert "".join(pieces) == text
        assert [w for piece in pieces for w, _ in split(piece)] == [w for w, _ in split(text)], repr(text)


def test_offsets_without_spaces_are_told_alike() -> None:
    tokenizer = tokenizer_with()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=True)
    assert tokenizer(" word", add_special_tokens=False).char_to_token(0) is not None
    assert tokenizer("a word", add_special_tokens=False).char_to_token(1) is None
    check(tokenizer, ["a word", "<|im_end|> word", *samples(100)])


def test_the_patterns_are_those_of_real_tokenizers() -> None:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
    from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN3_5

    assert {QWEN2, QWEN3_5} < PATTERNS


def spaced(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("two words")])


def stripping(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, special=True)], special_tokens=True)


def overlapping(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("word<|im_start|>", normalized=False)])


def longer(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("<|im_end|>_", normalized=False)])


def lone_word(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("word", single_word=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("Word", special=True)], special_tokens=True)


def numbered(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("<x1>")])


def prepending(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("x")


def first_place(tokenizer: Any) -> None:
    spaces = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spaces, pre_tokenizers.ByteLevel()])


def unlisted(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def spaces_last(tokenizer: Any) -> None:
    split = pre_tokenizers.Split(Regex(r"\S+\s*"), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])


CHANGES = [spaced, stripping, overlapping, lone_word, numbered, prepending, first_place, unlisted, spaces_last]


@pytest.mark.parametrize("change", [longer, *CHANGES])
def test_other_tokenizers_are_cut_less_and_right(change: Any) -> None:
    tokenizer = tokenizer_with()
    change(tokenizer)
    assert PieceTokenizer(tokenizer).words == (change is longer)
    draw = random.Random(0)
    dense = [*TURN, " ", "word", "Word", " word", "two words", "<mask>", "<x1>", "_", "\n", "é"]
    check(tokenizer, ["".join(draw.choices(dense, k=draw.randint(1, 9))) for _ in range(150)])


def test_what_an_earlier_call_set_changes_nothing() -> None:
    tokenizer = tokenizer_with()
    expected = PieceTokenizer(tokenizer).encode("Where is my card?").ids
    tokenizer("Where is my card?", truncation=True, max_length=1, padding="max_length")
    assert PieceTokenizer(tokenizer).encode("Where is my card?").ids == expected


def test_special_tokens_can_be_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY, split_special_tokens=True)
    assert tokenizer("<|im_end|>")["input_ids"] != [tokenizer.eos_token_id]
    check(tokenizer, samples(50))


def test_memory_of_pieces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "KEPT_TOKENS", 50)
    pieces = PieceTokenizer(tokenizer_with())
    for number in range(200):
        pieces.encode(f"word{number} and{number} more{number}")
    assert sum(map(len, pieces.known.values())) < 100
