"""A row's answer is its own: whoever shares its batch, leaves it early, or stands in another order."""

import csv
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptEncoderConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from pipelines.config.paths import PROJECT
from pipelines.policy.chat import Decoding, Generated, _give_room, _Stop, generate, inner
from pipelines.policy.template import ends_of, render

TINY = PROJECT / "data/models/tiny"
SIZES: dict[str, Any] = {
    "vocab_size": 3072,
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


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Twenty-four word problems and twenty-four queries to a bank: 14 to 200 tokens, in turn."""
    lines = (PROJECT / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    with (PROJECT / "data/banking77/test.csv").open(encoding="utf-8", newline="") as stream:
        queries = [record["text"] for record in list(csv.DictReader(stream))[::120][:24]]
    questions = [json.loads(line)["question"] for line in lines]
    asked = [text for pair in zip(questions, queries, strict=True) for text in pair]
    return render(tokenizer, [[{"role": "user", "content": text}] for text in asked], [None] * 48, {}, prompt=True)


def made(kind: str) -> Any:
    """A random model that ends a turn with any of two hundred tokens: its answers are of all lengths."""
    torch.manual_seed(0)
    built: dict[str, Any] = {
        "full": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "sliding": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=12, layer_types=SLIDING)),
        "hybrid": lambda: Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2)),
    }
    model = built[kind]().eval()
    for weights in model.parameters():
        if weights.dim() > 1:
            weights.data.mul_(4)  # or every prompt gets the same answer
    model.generation_config.eos_token_id = random.Random(0).sample(range(10, 3072), 200)
    return model


def random_prompts() -> list[list[int]]:
    drawn = random.Random(1)
    return [[drawn.randrange(10, 3072) for _ in range(drawn.choice([3, 8, 20, 40, 60]))] for _ in range(12)]


def sizes_of_batches(model: Any) -> list[int]:
    """Filled, from now on, with the rows of each forward."""
    seen: list[int] = []
    inner(model).register_forward_hook(lambda module, given, output: seen.append(len(output.logits)))
    return seen


def check_same(found: Sequence[Generated], expected: Sequence[Generated]) -> None:
    assert [(a.text, a.num_tokens, a.finished) for a in found] == [(a.text, a.num_tokens, a.finished) for a in expected]
    assert [a.logprob for a in found] == pytest.approx([a.logprob for a in expected], abs=1e-4)


def step_by_step(
    model: Any, tokenizer: Any, prompt: Sequence[int], limit: int, penalty: float = 1.0
) -> tuple[list[int], float]:
    """Greedy tokens and their log-probability by the definition: one row, no padding, no cache."""
    tokens, logprob = list(prompt), 0.0
    with torch.inference_mode():
        while len(tokens) < len(prompt) + limit:
            raw = model(torch.tensor([tokens])).logits[0, -1].double()
            scores = raw.clone()
            for token in set(tokens):
                scores[token] = raw[token] * penalty if raw[token] < 0 else raw[token] / penalty
            tokens.append(int(scores.argmax()))
            logprob += float(raw.log_softmax(-1)[tokens[-1]])
            if tokens[-1] in ends_of(model.generation_config, tokenizer):
                break
    return tokens[len(prompt) :], logprob


def test_real_prompts_get_the_same_answers_in_any_batch_and_order(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    alone = generate(model, tokenizer, prompts, Decoding(48), 1)
    assert len({answer.text for answer in alone}) > 30
    assert {answer.finished for answer in alone} == {True, False}
    assert min(len(prompt) for prompt in prompts) < 20 < 150 < max(len(prompt) for prompt in prompts)
    for batch_size in (4, 16):
        check_same(generate(model, tokenizer, prompts, Decoding(48), batch_size), alone)
    order = random.Random(0).sample(range(48), 48)
    shuffled = generate(model, tokenizer, [prompts[i] for i in order], Decoding(48), 16)
    check_same(shuffled, [alone[i] for i in order])


def test_tokens_and_log_probabilities_are_those_of_the_definition(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    asked = prompts[:6]
    for prompt, answer in zip(asked, generate(model, tokenizer, asked, Decoding(24), 6), strict=True):
        tokens, logprob = step_by_step(model, tokenizer, prompt, 24)
        assert (answer.num_tokens, answer.finished) == (len(tokens), tokens[-1] == tokenizer.eos_token_id)
        assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer.logprob == pytest.approx(logprob, abs=1e-4)


def test_log_probabilities_are_the_raw_ones_under_a_penalty_and_a_temperature(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    greedy = generate(model, tokenizer, prompts[:4], Decoding(12), 4)
    check_same(generate(model, tokenizer, prompts[:4], Decoding(12, temperature=1e-4), 4), greedy)
    model.generation_config.repetition_penalty = 1.3
    for prompt, answer in zip(prompts[:4], generate(model, tokenizer, prompts[:4], Decoding(12), 4), strict=True):
        tokens, logprob = step_by_step(model, tokenizer, prompt, 12, penalty=1.3)
        assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer.logprob == pytest.approx(logprob, abs=1e-4)


@pytest.mark.parametrize("kind", ["full", "sliding", "hybrid"])
def test_rows_that_have_ended_leave_where_the_cache_lets_them(tokenizer: Any, kind: str) -> None:
    model = made(kind)
    alone = generate(model, tokenizer, random_prompts(), Decoding(40), 1)
    assert len({answer.num_tokens for answer in alone}) > 3
    rows = sizes_of_batches(model)
    check_same(generate(model, tokenizer, random_prompts(), Decoding(40), 12), alone)
    assert rows[0] == 12
    assert (rows[-1] == 12) == (kind == "hybrid")
    assert sorted(rows, reverse=True) == rows


def test_a_batch_is_never_left_where_settings_count_from_its_beginning(tokenizer: Any) -> None:
    model = made("full")
    model.generation_config.min_new_tokens = 6
    alone = generate(model, tokenizer, random_prompts(), Decoding(40), 1)
    assert min(answer.num_tokens for answer in alone) > 6
    rows = sizes_of_batches(model)
    check_same(generate(model, tokenizer, random_prompts(), Decoding(40), 12), alone)
    assert set(rows) == {12}


def test_static_caches_work_as_well(tokenizer: Any) -> None:
    model = made("full")
    alone = generate(model, tokenizer, random_prompts(), Decoding(20), 1)
    model.generation_config.cache_implementation = "static"
    check_same(generate(model, tokenizer, random_prompts(), Decoding(20), 12), alone)


@pytest.mark.parametrize("kind", ["lora", "p_tuning"])
def test_adapters_change_nothing_about_that(tokenizer: Any, kind: str) -> None:
    torch.manual_seed(1)
    adapters: dict[str, Any] = {
        "lora": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        "p_tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=32),
    }
    plain = generate(made("full"), tokenizer, random_prompts(), Decoding(40), 1)
    model = get_peft_model(made("full"), adapters[kind]).eval()
    alone = generate(model, tokenizer, random_prompts(), Decoding(40), 1)
    assert [answer.text for answer in alone] != [answer.text for answer in plain]
    check_same(generate(model, tokenizer, random_prompts(), Decoding(40), 12), alone)


def test_a_stop_string_ends_an_answer_before_it(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    free = generate(model, tokenizer, prompts, Decoding(40), 16)
    stop = ("=", " the", "ord", "ar", "car")
    cut = generate(model, tokenizer, prompts, Decoding(40, stop=stop), 16)
    for whole, short in zip(free, cut, strict=True):
        at = [whole.text.find(string) for string in stop if string in whole.text]
        assert short.text == (whole.text[: min(at)] if at else whole.text)
        assert short.finished == (whole.finished or bool(at))
        assert (short.num_tokens < whole.num_tokens) or whole.text.endswith(stop) or not at
    assert sum(short.text != whole.text for whole, short in zip(free, cut, strict=True)) > 20
    check_same(generate(model, tokenizer, prompts, Decoding(40, stop=stop), 1), cut)
    check_same(generate(model, tokenizer, prompts[::-1], Decoding(40, stop=stop), 4), cut[::-1])


def test_a_stop_string_that_is_noticed_late_cuts_as_well(
    model: Any, tokenizer: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = Decoding(40, stop=("ar", "=", " the"))
    cut = generate(model, tokenizer, prompts[:24], decoding, 16)
    monkeypatch.setattr(_Stop, "reached", lambda stop, tokens: False)
    check_same(generate(model, tokenizer, prompts[:24], decoding, 16), cut)


def test_a_cache_with_room_holds_what_one_without_would() -> None:
    torch.manual_seed(0)
    caches = [DynamicCache(), DynamicCache()]
    drawn = random.Random(0)
    for step in range(400):
        rows = caches[0].layers[0].keys.shape[0] if step else 3
        change = drawn.choice(["select", "reorder", "crop", "repeat"]) if step % 9 == 8 else "update"
        new = torch.randn(2, rows, 2, drawn.choice([1, 1, 1, 5]), 4)
        order = torch.randperm(rows)[: max(2, rows - 1)]
        for cache in caches:
            if change == "update":
                held = cache.update(*new, 0)
                assert torch.equal(held[0], cache.layers[0].keys)
            elif change == "select":
                cache.batch_select_indices(order)
            elif change == "reorder":
                cache.layers[0].reorder_cache(torch.arange(rows).flip(0))
            elif change == "crop":
                cache.crop(-3)
            elif rows < 4:
                cache.batch_repeat_interleave(2)
        _give_room(caches[1])
        for name in ("keys", "values"):
            assert torch.equal(getattr(caches[0].layers[0], name), getattr(caches[1].layers[0], name))
    assert type(caches[1].layers[0]) is not type(caches[0].layers[0])
    assert caches[1].get_seq_length() > 128


def test_rows_do_no_work_after_their_stop_string(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    (free,) = generate(model, tokenizer, prompts[:1], Decoding(40), 1)
    half = free.text[: len(free.text) // 2]
    rows = sizes_of_batches(model)
    (cut,) = generate(model, tokenizer, prompts[:1], Decoding(40, stop=(half[-3:],)), 1)
    assert cut.finished
    assert len(rows) == cut.num_tokens < free.num_tokens
    tokens, _ = step_by_step(model, tokenizer, prompts[0], cut.num_tokens)
    assert half[-3:] in tokenizer.decode(tokens)
    assert half[-3:] not in tokenizer.decode(tokens[:-1])


def test_a_special_token_ends_an_answer_where_it_is_a_stop_string(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    first = tokenizer.convert_ids_to_tokens(step_by_step(model, tokenizer, prompts[1], 2)[0][1])
    marked = AutoTokenizer.from_pretrained(TINY)
    marked.add_special_tokens({"extra_special_tokens": [first]})
    (answer,) = generate(model, marked, prompts[1:2], Decoding(8, stop=(first,)), 1)
    assert (answer.num_tokens, answer.finished) == (2, True)
