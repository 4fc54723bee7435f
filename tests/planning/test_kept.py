"""What the repository keeps of architectures is what the real code gives: peft's injection, simulated layers."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pipelines.planning.architecture import SHIPPED, settings_of
from pipelines.planning.computed import computed_facts, with_layers
from pipelines.planning.facts import KEPT, Curve, kept_facts
from pipelines.planning.injection import built, counts_of, trainable_of
from pipelines.planning.keep import adapter_of, facts_record, profile_of
from pipelines.planning.memory import Job, predict
from pipelines.planning.simulation import Storages, simulate
from pipelines.policy.adapter import peft_config

SMALL: dict[str, Any] = {
    "architecture": "Qwen3ForCausalLM",
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
}
PEFT = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"])


@pytest.mark.parametrize(
    ("profile", "adapter"),
    [pytest.param(name, "lora", marks=pytest.mark.slow) for name in ("qwen3_0_6b", "gpt_oss_20b")],
)
def test_kept_facts_are_what_is_computed(profile: str, adapter: str) -> None:
    model = profile_of(profile)
    chosen = adapter_of(adapter, model)
    kept = kept_facts(model, chosen, settings_of(model))
    assert kept is not None
    found = computed_facts(settings_of(model), model, chosen)
    assert (kept.counts, kept.trainable) == (found.counts, found.trainable)
    for batch, length in ((1, 1024), (4, 2048)):
        job = Job(batch, length, False)
        assert predict(kept, job).total == pytest.approx(predict(found, job).total, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("profile", sorted(path.stem for path in SHIPPED.glob("*.json")))
def test_all_that_is_kept_is_what_is_computed(profile: str) -> None:
    kept = json.loads((KEPT / f"{profile}.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(facts_record(profile_of(profile))))


def test_other_settings_of_an_architecture_are_not_taken_for_the_kept_ones() -> None:
    model = profile_of("qwen3_0_6b")
    changed = settings_of(model) | {"num_hidden_layers": 3}
    assert kept_facts(model, adapter_of("lora", model), changed) is None
    assert kept_facts(model, adapter_of("lora", model, r=7), settings_of(model)) is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_simulated_step_counts_what_a_real_one_keeps(checkpointing: bool) -> None:
    """The same step with real tensors under the same counter: what the forward pass leaves, and the peak."""
    fake = simulate(SMALL, PEFT, (2, 64), checkpointing, "stock")
    with Storages() as storages:
        model = get_peft_model(built(SMALL), PEFT)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        model.train()
        tokens = torch.ones(2, 64, dtype=torch.long)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
        for _ in range(2):
            before = storages.live
            storages.peak = before
            with torch.autocast("cpu", dtype=torch.bfloat16):
                # A mask with padding, since fake tensors can't tell that there is none.
                mask = torch.ones_like(tokens)
                mask[0, 0] = 0
                loss = model(input_ids=tokens, labels=tokens, attention_mask=mask).loss
            kept = storages.live - before
            loss.backward()
            peak = storages.peak - before
            del loss
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert kept == pytest.approx(fake.kept, rel=0.05)
    assert peak == pytest.approx(fake.peak - fake.steady, rel=0.05)


def test_a_plan_of_more_layers_is_near_their_simulation() -> None:
    """Facts come from one and two layers; here are four."""
    model = profile_of("qwen3_0_6b")
    adapter = adapter_of("lora", model)
    facts = kept_facts(model, adapter, settings_of(model))
    assert facts is not None
    settings = with_layers(settings_of(model), 4)
    facts = replace(facts, counts=counts_of(settings), trainable=trainable_of(settings, model, adapter))
    for checkpointing in (False, True):
        found = simulate(settings, peft_config(adapter, model), (1, 2048), checkpointing, "stock")
        predicted = predict(facts, Job(1, 2048, checkpointing, logit_bytes=12.0)).allocated
        assert predicted == pytest.approx(found.peak, rel=0.07)


def test_a_curve_goes_through_its_points() -> None:
    curve = Curve.through([(512, 1000 + 3 * 512 + 512**2), (1024, 1000 + 3 * 1024 + 1024**2), (2048, 7144 + 2048**2)])
    assert curve.at(1, 512) == pytest.approx(1000 + 3 * 512 + 512**2, rel=0.02)
    flat = Curve.through([(512, 512.0), (1024, 1024.0), (2048, 2049.0)])
    assert (flat.constant, flat.square) == (0, 0)
