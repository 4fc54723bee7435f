"""Which tokenizers mean the same, and what is said of those that don't."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.policy.vocabulary import check_same, digest, template_difference, vocabulary_difference

TINY = PROJECT / "data/models/tiny"


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def changed(folder: Path, **settings: Any) -> Any:
    """The shipped tokenizer with two tokens exchanged, or other settings."""
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    vocabulary = found["model"]["vocab"]
    for one, other in settings.pop("exchange", []):
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(found))
    return AutoTokenizer.from_pretrained(folder, **settings)


def model(vocabulary: int) -> Any:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=16,
            num_hidden_layers=1,
            intermediate_size=16,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=16,
        )
    )


def test_a_tokenizer_is_like_itself(tokenizer: Any, tmp_path: Path) -> None:
    same = changed(tmp_path)
    assert vocabulary_difference(tokenizer, same) is None
    assert template_difference(tokenizer, {}, same, {}) is None


def test_the_first_token_that_differs_is_named(tokenizer: Any, tmp_path: Path) -> None:
    words = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    (first, number), (second, _) = words[1000], words[2000]
    other = changed(tmp_path, exchange=[(first, second)])
    told = vocabulary_difference(tokenizer, other)
    assert told == f"token {number} is {first!r} for the student, {second!r} for the teacher"


def test_size_and_ends_of_turns_are_named(tokenizer: Any, tmp_path: Path) -> None:
    other = changed(tmp_path, eos_token="<|stop|>")
    told = vocabulary_difference(tokenizer, other)
    size = len(tokenizer)
    assert told == (
        f"{size} tokens for the student, {size + 1} for the teacher; "
        f"token {size} is none for the student, '<|stop|>' for the teacher; "
        "eos_token is '<|im_end|>' for the student, '<|stop|>' for the teacher"
    )


def test_padding_is_no_difference(tokenizer: Any, tmp_path: Path) -> None:
    other = changed(tmp_path, pad_token="<|im_end|>")
    assert vocabulary_difference(tokenizer, other) is None
    before = digest(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=4)
    assert digest(tokenizer) == before == digest(other)


def test_another_order_of_tokens_is_another_digest(tokenizer: Any, tmp_path: Path) -> None:
    words = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    other = changed(tmp_path, exchange=[(words[1000][0], words[2000][0])])
    assert digest(other) != digest(tokenizer)


def test_where_two_templates_part_is_told(tokenizer: Any, tmp_path: Path) -> None:
    other = changed(tmp_path)
    other.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|endoftext|>")
    told = template_difference(tokenizer, {}, other, {})
    assert told is not None
    assert told.startswith("after ")
    assert 'goes on with "<|im_end|>' in told
    assert "the teacher's with \"<|endoftext|>" in told


def test_a_teacher_of_another_template_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    other = changed(tmp_path)
    other.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|endoftext|>")
    teacher = SimpleNamespace(model=model(len(tokenizer)), tokenizer=other, template={})
    with pytest.raises(UserError, match="needs one chat template, and the teacher's differs: after"):
        check_same(model(len(tokenizer)), tokenizer, teacher, {}, "on_policy")


def test_rows_behind_all_tokens_are_cut_off_a_teachers_head(tokenizer: Any) -> None:
    size = len(tokenizer)
    larger = SimpleNamespace(model=model(size + 64), tokenizer=tokenizer, template={})
    before = larger.model.get_output_embeddings().weight[:size].clone()
    check_same(model(size), tokenizer, larger, {}, "on_policy")
    assert larger.model.get_output_embeddings().weight.shape[0] == size
    assert (larger.model.get_output_embeddings().weight == before).all()
    smaller = SimpleNamespace(model=model(size), tokenizer=tokenizer, template={})
    told = f"the student's has {size + 64} rows for {size} tokens, the teacher's {size}"
    with pytest.raises(UserError, match=told):
        check_same(model(size + 64), tokenizer, smaller, {}, "on_policy")
