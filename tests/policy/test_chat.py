"""Greedy answers don't depend on who shares the batch."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.config.paths import PROJECT
from pipelines.policy.chat import Decoding, Generated, generate
from pipelines.policy.template import render

QUERIES = [
    "Where is my card?",
    "Hi",
    "I lost my card in the snow yesterday, what now, please tell me soon",
    "age?",
    "x",
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """The shipped base: random weights would give every query the same answer."""
    folder = PROJECT / "data/models/tiny"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def answers(loaded: tuple[Any, Any], queries: list[str], batch_size: int) -> list[Generated]:
    conversations = [[{"role": "user", "content": query}] for query in queries]
    prompts = render(loaded[1], conversations, [None] * len(queries), {}, prompt=True)
    return generate(*loaded, prompts, Decoding(8), batch_size=batch_size)


def texts(found: list[Generated]) -> list[tuple[str, int, bool]]:
    return [(answer.text, answer.num_tokens, answer.finished) for answer in found]


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batch_size_and_order_change_no_answer(loaded: tuple[Any, Any], batch_size: int) -> None:
    alone = answers(loaded, QUERIES, 1)
    assert texts(answers(loaded, QUERIES, batch_size)) == texts(alone)
    assert texts(answers(loaded, QUERIES[::-1], batch_size)) == texts(alone[::-1])
    assert len({answer.text for answer in alone}) > 1


def test_an_answer_stops_at_its_end_token_or_the_limit(loaded: tuple[Any, Any]) -> None:
    (free,) = answers(loaded, QUERIES[:1], 1)
    assert free.finished
    prompt = render(loaded[1], [[{"role": "user", "content": QUERIES[0]}]], [None], {}, prompt=True)
    (cut,) = generate(*loaded, prompt, Decoding(2), batch_size=1)
    assert (cut.num_tokens, cut.finished) == (2, False)
    assert free.text.startswith(cut.text)
    assert free.num_tokens > 2


def test_every_listed_end_token_ends_an_answer(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    first = tokenizer(answers(loaded, QUERIES[:1], 1)[0].text, add_special_tokens=False)["input_ids"][0]
    kept = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [first, tokenizer.eos_token_id]
    try:
        assert texts(answers(loaded, QUERIES[:1], 1)) == [("", 1, True)]
    finally:
        model.generation_config.eos_token_id = kept
