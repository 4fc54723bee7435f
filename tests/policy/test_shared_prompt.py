"""Prompts computed once give what prompts computed for each answer give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from pipelines.config.paths import PROJECT
from pipelines.policy.base import load_tokenizer_from
from pipelines.policy.chat import Decoding, generate
from pipelines.policy.prefill import only_attends
from pipelines.policy.shared_prompt import SharedPromptTrainer, can_share

SIZES: dict[str, Any] = {
    "vocab_size": 3072,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15], [20, 21, 22, 23, 24]]


def qwen() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True))


def gemma() -> Any:
    """Two of its three layers see four tokens back and no further."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, layer_types=kinds, sliding_window=4))


def trainer(cls: type[GRPOTrainer], model: Any, folder: Path, **more: Any) -> Any:
    settings = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        num_generations=4,
        per_device_train_batch_size=12,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        max_steps=2,
        seed=3,
        disable_tqdm=True,
        **{"max_completion_length": 6, **more},
    )
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in ("one", "two and more", "3")])
    return cls(
        model=model,
        reward_funcs=[lambda completions, **_: [float(len(str(text)) % 3) for text in completions]],
        args=settings,
        train_dataset=rows,
        processing_class=load_tokenizer_from(PROJECT / "data/models/tiny"),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of other lengths, four answers to each, in a mixed order, left- and right-padded."""
    torch.manual_seed(1)
    width, kept = max(map(len, PROMPTS)), 5
    ids, masks = [], []
    for number in range(12):
        prompt = PROMPTS[(number * 5) % 3]
        length = number % kept + 1
        answer = torch.randint(30, 3000, (length,)).tolist()
        ids.append([0] * (width - len(prompt)) + prompt + answer + [0] * (kept - length))
        masks.append([0] * (width - len(prompt)) + [1] * (len(prompt) + length) + [0] * (kept - length))
    return torch.tensor(ids), torch.tensor(masks)


@pytest.mark.parametrize("make", [qwen, gemma])
@pytest.mark.parametrize("size", [None, 5])
def test_log_probabilities_entropies_and_gradients_are_trls(
    make: Callable[[], Any], size: int | None, tmp_path: Path
) -> None:
    found = []
    for cls in (GRPOTrainer, SharedPromptTrainer):
        made = trainer(cls, make(), tmp_path)
        ids, mask = batch()
        logps, entropies, _ = made._get_per_token_logps_and_entropies(
            made.model, ids, mask, 5, batch_size=size, compute_entropy=True
        )
        scored = mask[:, -5:].bool()
        (logps * scored * torch.linspace(-1, 1, 5)).sum().backward()
        gradients = [p.grad.flatten() for p in made.model.parameters() if p.grad is not None]
        found.append((logps[scored].detach(), entropies[scored].detach(), torch.cat(gradients)))
    for theirs, ours in zip(*found, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def widths(made: Any) -> list[tuple[int, ...]]:
    """Rows and tokens of every forward pass from now on."""
    seen: list[tuple[int, ...]] = []
    made.model.get_base_model().model.embed_tokens.register_forward_hook(
        lambda _, given, __: seen.append(tuple(given[0].shape))
    )
    return seen


def test_each_prompt_is_computed_once_and_short_answers_without_the_padding_of_long_ones(tmp_path: Path) -> None:
    made = trainer(SharedPromptTrainer, qwen(), tmp_path)
    seen = widths(made)
    made._get_per_token_logps_and_entropies(made.model, *batch(), 5)
    # Three prompts but their last token; then twelve answers of one to five tokens, each with that token before it.
    assert seen == [(3, 7), (3, 2), (3, 3), (3, 5), (3, 6)]


@pytest.mark.parametrize("idle", [[0, 1, 2, 5, 7], list(range(12))])
def test_answers_that_move_nothing_are_scored_all_the_same(idle: list[int], tmp_path: Path) -> None:
    made = trainer(SharedPromptTrainer, gemma(), tmp_path)
    ids, mask = batch()
    scored = mask[:, -5:].bool()
    weight = torch.linspace(-1, 1, 12)[:, None] * scored
    weight[idle] = 0
    found = []
    for chosen in (None, torch.tensor([number in idle for number in range(12)])):
        made._idle = chosen
        made.model.zero_grad()
        logps, entropies, _ = made._get_per_token_logps_and_entropies(made.model, ids, mask, 5, compute_entropy=True)
        (logps * weight).sum().backward()
        gradients = [p.grad.flatten() for p in made.model.parameters() if p.grad is not None]
        found.append((logps[scored].detach(), entropies[scored].detach(), torch.cat(gradients)))
        assert logps.grad_fn is not None
    for plain, without in zip(*found, strict=True):
        torch.testing.assert_close(without, plain, atol=2e-5, rtol=1e-4)


def test_a_loss_says_who_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(SharedPromptTrainer, qwen(), tmp_path)
    told: list[torch.Tensor | None] = []
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs: told.append(self._idle))
    inputs = {"advantages": torch.tensor([0.0, 1.0, 0.0]), "completion_ids": torch.ones(3, 2)}
    made._compute_loss(made.model, inputs)
    made.beta = 0.1  # the KL to the reference has a gradient for every answer
    made._compute_loss(made.model, inputs)
    assert told[0] is not None
    assert told[0].tolist() == [True, False, True]
    assert told[1] is None


@pytest.mark.parametrize("make", [qwen, gemma])
def test_generation_is_trls(make: Callable[[], Any], tmp_path: Path) -> None:
    """Greedy: what is drawn hangs on how many are in the batch, and answers that have ended leave it."""
    asked = [prompt for prompt in PROMPTS for _ in range(4)]
    found = []
    for cls in (GRPOTrainer, SharedPromptTrainer):
        made = trainer(cls, make(), tmp_path, temperature=1e-4)
        found.append(made._generate_single_turn(asked, None, {}, 4)[0])
    assert found[0] == found[1]
    assert len({tuple(tokens) for tokens in found[0]}) == 3


def test_an_answer_that_has_ended_is_no_more_computed(tmp_path: Path) -> None:
    made = trainer(SharedPromptTrainer, qwen(), tmp_path, max_completion_length=40)
    head = made.model.get_output_embeddings()
    end = made.eos_token_ids[0]

    def end_often(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        logits[..., end] = logits.logsumexp(-1) - 1
        return logits

    head.register_forward_hook(end_often)
    seen = widths(made)
    answers, _ = made._generate_single_turn([PROMPTS[0]] * 40, None, {}, 4)
    decoded = [rows for rows, width in seen if width == 1]
    assert all(tokens[-1] == end and end not in tokens[:-1] for tokens in answers if len(tokens) < 40)
    assert len({len(tokens) for tokens in answers}) > 3
    assert decoded[0] == 40
    assert min(decoded) < 10


def test_repeated_questions_are_answered_as_single_ones_are() -> None:
    model, tokenizer = qwen().eval(), load_tokenizer_from(PROJECT / "data/models/tiny")
    single = generate(model, tokenizer, PROMPTS, Decoding(9), 8)
    repeated = generate(model, tokenizer, [prompt for prompt in PROMPTS for _ in range(3)], Decoding(9), 8)
    assert [one.text for one in repeated] == [one.text for one in single for _ in range(3)]
    assert [one.logprob for one in repeated] == pytest.approx([one.logprob for one in single for _ in range(3)], 1e-4)


def test_training_goes_the_same_way(tmp_path: Path) -> None:
    weights = []
    for cls in (GRPOTrainer, SharedPromptTrainer):
        made = trainer(cls, qwen(), tmp_path / cls.__name__)
        made.train()
        weights.append(torch.cat([p.detach().flatten() for p in made.model.parameters() if p.requires_grad]))
    start = trainer(GRPOTrainer, qwen(), tmp_path)
    begun = torch.cat([p.detach().flatten() for p in start.model.parameters() if p.requires_grad])
    assert (weights[0] - begun).abs().max() > 5e-3
    torch.testing.assert_close(weights[1], weights[0], atol=2e-4, rtol=0)


def test_who_cannot_share(tmp_path: Path) -> None:
    model = qwen()
    settings = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False)
    assert can_share(settings, model)
    settings.gradient_checkpointing = True
    assert not can_share(settings, model)
    model.config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    assert not only_attends(model)
    model.config.layer_types = None
    model.generation_config.cache_implementation = "static"
    assert not only_attends(model)
