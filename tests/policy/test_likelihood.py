"""Likelihoods from trees of tokens are those of each answer by itself, and no more memory is held than is said."""

import csv
import itertools
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pipelines.config.paths import PROJECT
from pipelines.policy import likelihood
from pipelines.policy.chat import Decoding, generate
from pipelines.policy.likelihood import continuation_likelihoods, option_likelihoods
from pipelines.policy.template import render

TINY = PROJECT / "data/models/tiny"
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
Pairs = tuple[list[list[int]], list[list[list[int]]]]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def labels() -> list[str]:
    names = json.loads((PROJECT / "data/banking77/categories.json").read_text(encoding="utf-8"))
    return [*names, "out_of_scope"]


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    with (PROJECT / "data/banking77/test.csv").open(encoding="utf-8", newline="") as stream:
        queries = [record["text"] for record in list(csv.DictReader(stream))[::250]]
    asked = [[{"role": "user", "content": query}] for query in queries]
    return render(tokenizer, asked, [None] * len(asked), {}, prompt=True)


def made(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    built: dict[str, Any] = {
        "sdpa": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "eager": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager")),
        "sliding": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=12, layer_types=SLIDING)),
        "recurrent": lambda: Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2)),
        "prefix": lambda: get_peft_model(
            LlamaForCausalLM(LlamaConfig(**SIZES)), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
        ),
    }
    model = built[kind]().eval()
    for weights in model.parameters():
        if weights.dim() > 1 or kind == "prefix":
            weights.data.mul_(4)  # or every token is as likely as any other
    return model.to(dtype)


def drawn(model: Any) -> Pairs:
    """Contexts of 2 to 60 tokens; continuations of 1 to 7 that share beginnings, the greedy one among them."""
    choose = random.Random(3)
    contexts = [[choose.randrange(300) for _ in range(length)] for length in (2, 9, 33, 60, 9, 17)]
    continuations = []
    for context in contexts:
        given = [[choose.randrange(4) for _ in range(choose.randrange(1, 8))] for _ in range(8)]
        greedy = greedily(model, context, 5)
        continuations.append([*given, greedy, greedy[:2], given[0], [*greedy[:3], 299]])
    return contexts, continuations


def logprobs(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Of every next token, after each of the tokens."""
    with torch.inference_mode():
        ids = torch.tensor([list(tokens)])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[0].double().log_softmax(-1)


def greedily(model: Any, context: Sequence[int], count: int) -> list[int]:
    tokens = list(context)
    for _ in range(count):
        tokens.append(int(logprobs(model, tokens)[-1].argmax()))
    return tokens[len(context) :]


def plainly(model: Any, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """By the definition: one sequence by itself."""
    rows = logprobs(model, [*context, *continuation])[len(context) - 1 : -1]
    value = float(rows[range(len(continuation)), list(continuation)].sum())
    return value, rows.argmax(-1).tolist() == list(continuation)


def check(model: Any, pairs: Pairs, batch_size: int, within: float) -> None:
    found = continuation_likelihoods(model, *pairs, batch_size)
    for context, given, scores in zip(*pairs, found, strict=True):
        for continuation, (value, greedy) in zip(given, scores, strict=True):
            expected = plainly(model, context, continuation)
            assert value == pytest.approx(expected[0], abs=within)
            assert greedy is expected[1]
    flags = [greedy for scores in found for _, greedy in scores]
    assert True in flags
    assert False in flags


def masks_of(model: Any) -> list[int]:
    """Filled, from now on, with how many dimensions each batch's mask has: 4 where it holds trees."""
    seen: list[int] = []

    def look(module: Any, given: Any, named: Any) -> None:
        if "logits_to_keep" in named:
            seen.append(named["attention_mask"].dim())

    model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_tree_scores_each_branch_as_if_alone(kind: str, batch_size: int) -> None:
    double = made(kind, torch.float64)
    check(double, drawn(double), batch_size, 1e-9 if kind == "sdpa" else 1e-6)  # eager has a softmax of 32 bits
    model = made(kind)
    masks = masks_of(model)
    check(model, drawn(model), batch_size, 1e-5)
    assert set(masks) == {4}
    assert len(masks) == math.ceil(6 / batch_size)


@pytest.mark.parametrize("kind", ["sliding", "recurrent", "prefix"])
def test_models_that_take_no_trees_get_plain_sequences(kind: str) -> None:
    model = made(kind)
    masks = masks_of(model)
    check(model, drawn(model), 5, 1e-5)
    assert set(masks) == {2}


def test_a_tree_would_be_wrong_for_a_sliding_window(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("sliding")
    pairs = drawn(model)
    right = continuation_likelihoods(model, *pairs, 4)
    monkeypatch.setattr(likelihood, "_takes_trees", lambda model: True)
    wrong = continuation_likelihoods(model, *pairs, 4)
    assert abs(right[3][0][0] - wrong[3][0][0]) > 0.01


@pytest.mark.parametrize("kind", ["sdpa", "sliding"])
def test_logits_of_a_batch_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = made(kind)
    pairs = drawn(model)
    free = continuation_likelihoods(model, *pairs, 64)
    monkeypatch.setattr(likelihood, "LOGITS", 8 * 300)
    rows: list[int] = []
    model.register_forward_hook(lambda module, given, output: rows.append(output.logits.shape[:2].numel()))
    bound = continuation_likelihoods(model, *pairs, 64)
    for one, other in zip(free, bound, strict=True):
        assert [value for value, _ in one] == pytest.approx([value for value, _ in other], abs=1e-5)
        assert [greedy for _, greedy in one] == [greedy for _, greedy in other]
    assert max(rows) <= 8


@pytest.mark.parametrize("kind", ["sdpa", "sliding"])
def test_order_and_neighbours_change_nothing_and_progress_adds_up(kind: str) -> None:
    model = made(kind)
    contexts, continuations = drawn(model)
    told: list[int] = []
    found = continuation_likelihoods(model, contexts, continuations, 4, told.append)
    assert sum(told) == len(contexts)
    back = continuation_likelihoods(model, contexts[::-1], [given[::-1] for given in continuations[::-1]], 3)
    for one, other in zip(found, back[::-1], strict=True):
        assert [value for value, _ in one] == pytest.approx([value for value, _ in other[::-1]], abs=1e-5)
    assert continuation_likelihoods(model, [[5], [6]], [[], [[7]]], 4)[0] == []


def test_nothing_is_scored_without_tokens() -> None:
    model = made("sdpa")
    for context, continuation in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="expected tokens in every context and every continuation"):
            continuation_likelihoods(model, [[1], context], [[[1]], [[1], continuation]], 4)


def test_probabilities_of_all_short_continuations_add_up_to_one() -> None:
    model = made("sdpa", torch.float64)
    every = [[first, second] for first, second in itertools.product(range(300), range(300))][: 300 * 20]
    (scores,) = continuation_likelihoods(model, [[3, 1, 4]], [every], 4)
    for first in range(20):
        group = [value for value, _ in scores[300 * first : 300 * (first + 1)]]
        alone = plainly(model, [3, 1, 4], [first])[0]
        assert np.logaddexp.reduce(group) == pytest.approx(alone, abs=1e-9)


def test_labels_are_scored_with_the_end_of_the_turn(
    tiny: Any, tokenizer: Any, prompts: list[list[int]], labels: list[str]
) -> None:
    found = option_likelihoods(tiny, tokenizer, prompts, labels, 8)
    assert found.shape == (len(prompts), 78)
    for row, prompt in list(enumerate(prompts))[::4]:
        for column in (0, 5, 41, 77):
            answer = [*tokenizer(labels[column], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            assert found[row, column] == pytest.approx(plainly(tiny, prompt, answer)[0], rel=1e-6, abs=1e-4)
    assert np.exp(found).sum(axis=1).max() <= 1.0


def test_the_answer_that_is_written_has_the_likelihood_it_was_written_with(
    tiny: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    written = generate(tiny, tokenizer, prompts, Decoding(24), 8)
    texts = sorted({answer.text for answer in written if answer.finished})
    found = option_likelihoods(tiny, tokenizer, prompts, texts, 8)
    compared = [(row, answer) for row, answer in enumerate(written) if answer.finished]
    assert len(compared) > 5
    for row, answer in compared:
        assert found[row, texts.index(answer.text)] == pytest.approx(answer.logprob, abs=1e-4)


def test_of_several_tokens_that_end_a_turn_any_will_do(tiny: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    ids = tokenizer("age_limit", add_special_tokens=False)["input_ids"]
    kept = tiny.generation_config.eos_token_id
    tiny.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
    try:
        found = option_likelihoods(tiny, tokenizer, prompts[:2], ["age_limit"], 8)
    finally:
        tiny.generation_config.eos_token_id = kept
    for row in range(2):
        each = [plainly(tiny, prompts[row], [*ids, end])[0] for end in (tokenizer.eos_token_id, 7)]
        assert found[row, 0] == pytest.approx(np.log(np.exp(each).sum()), rel=1e-6, abs=1e-4)


def test_an_option_is_tokenised_as_it_follows_the_prompt() -> None:
    """The first word of a text gets a space in front, one after the prompt's end token doesn't."""
    words = {"<unk>": 0, "<end>": 1, "▁card": 2, "card": 3, "▁lost": 4, "lost": 5}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<end>")
    assert tokenizer("card lost")["input_ids"] == [2, 4]
    model = made("sdpa", torch.float64)
    model.generation_config.eos_token_id = 1
    found = option_likelihoods(model, tokenizer, [[2, 1], [2, 4, 5, 1]], ["card lost", "lost"], 2)
    for row, prompt in enumerate(([2, 1], [2, 4, 5, 1])):
        assert found[row, 0] == pytest.approx(plainly(model, prompt, [3, 4, 1])[0], abs=1e-9)
        assert found[row, 1] == pytest.approx(plainly(model, prompt, [5, 1])[0], abs=1e-9)
