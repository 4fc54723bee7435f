"""Mixtures of experts of four families, trained for real: what an adapter reaches, moves and leaves alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import parametrize
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from pipelines.config.block import Quantization
from pipelines.config.schema import Adapter, Model
from pipelines.errors import UserError
from pipelines.policy import adapter as policy
from pipelines.policy import moe
from pipelines.policy.counting import count, counted, part_of
from pipelines.policy.routing import Routers
from tests.policy.architectures import FAMILIES

CONF = Path(__file__).parents[2] / "conf"
TOKENS = torch.arange(96).reshape(4, 24)
FOUR_BITS = Quantization(
    bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32", experts=True
)


def profile_of(family: str) -> Model:
    return Model.model_validate(OmegaConf.to_container(OmegaConf.load(CONF / f"model/{FAMILIES[family].profile}.yaml")))


def adapter_for(family: str, **changes: Any) -> Adapter:
    profile = CONF / f"model/{FAMILIES[family].profile}.yaml"
    composed = OmegaConf.create(
        {"model": OmegaConf.load(profile), "adapter": OmegaConf.load(CONF / "adapter/lora.yaml")}
    )
    values: Any = OmegaConf.to_container(composed, resolve=True)
    peft = values["adapter"]["peft"] | {"r": 4, "lora_alpha": 8} | changes.pop("peft", {})
    return Adapter.model_validate(values["adapter"] | {"peft": peft} | changes)


def attach(base: nn.Module, family: str, adapter: Adapter) -> PeftModel:
    torch.manual_seed(1)
    profile = profile_of(family)
    model = get_peft_model(base, policy.peft_config(adapter, profile))
    policy.check_attached(model, adapter, profile)
    return model


def train(model: nn.Module, steps: int = 4) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=TOKENS).logits
    return found


def frozen(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


def unmoved(before: dict[str, torch.Tensor], model: nn.Module) -> bool:
    after = frozen(model)
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def everything(family: str) -> dict[str, bool]:
    """All that the family's profile lets an adapter train."""
    targets = profile_of(family).targets
    return {
        "train_experts": True,
        "train_shared_experts": bool(targets.shared_expert_parameters),
        "train_router": True,
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole", [False, True], ids=["as the profile says", "with experts and router"])
def test_family_trains_and_reloads(family: str, whole: bool, tmp_path: Path) -> None:
    base = FAMILIES[family].made()
    base.save_pretrained(tmp_path / "base")
    adapter = adapter_for(family, **(everything(family) if whole else {}))
    model = attach(base, family, adapter)
    before = frozen(model)
    losses = train(model)
    assert losses[-1] < losses[0]
    assert unmoved(before, model)
    parts = {part_of(name) for name, p in model.named_parameters() if "lora_B" in name and bool(p.any())}
    wanted = {"attention"} | ({"experts", "router"} if whole else set())
    if family == "llama4":  # the profile's gate_proj, up_proj and down_proj
        wanted |= {"shared_experts", "mlp"}
    if family == "deepseek_v3" and whole:
        wanted |= {"shared_experts"}
    assert parts == wanted
    still = [n for n, p in model.named_parameters() if "lora_B" in n and not bool(p.any())]
    assert not still
    trained = logits(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    fresh = type(base).from_pretrained(tmp_path / "base")
    assert not torch.equal(logits(fresh), trained)
    assert (logits(PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))) - trained).abs().max() < 1e-5


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointed", "reentrant"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_trains_over_experts_in_four_bits(family: str, checkpointing: bool | None, tmp_path: Path) -> None:
    profile, adapter = profile_of(family), adapter_for(family, quantization=FOUR_BITS.model_dump())
    base = FAMILIES[family].made()
    weights = moe.stored(base.requires_grad_(False))["float32"]
    left = moe.experts_left(base, profile)
    assert moe.quantize_experts(base, profile, FOUR_BITS) == 2 * len(FAMILIES[family].sparse_layers)
    assert moe.experts_left(base, profile) == 0
    stored = moe.stored(base)
    assert stored["float32"] == weights - left
    assert left / 8 < stored["4 bit"] < left / 5  # a nibble for four bytes, and the scales with their tables
    model = attach(base, family, adapter)
    if checkpointing is not None:
        base.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        base.enable_input_require_grads()
    before = frozen(model)
    losses = train(model)
    assert losses[-1] < losses[0]
    assert unmoved(before, model)
    assert (parametrize._cache_enabled, len(parametrize._cache)) == (0, 0)
    trained = logits(model)
    model.save_pretrained(str(tmp_path))
    fresh = FAMILIES[family].made()
    moe.quantize_experts(fresh, profile, FOUR_BITS)
    assert (logits(PeftModel.from_pretrained(fresh, str(tmp_path))) - trained).abs().max() < 1e-5


def test_checkpointing_changes_no_gradient_over_experts_in_four_bits() -> None:
    found = {}
    for on in (False, True):
        base = FAMILIES["qwen3_moe"].made()
        moe.quantize_experts(base, profile_of("qwen3_moe"), FOUR_BITS)
        model = attach(base, "qwen3_moe", adapter_for("qwen3_moe"))
        if on:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.enable_input_require_grads()
        found[on] = train(model)
    assert found[True] == pytest.approx(found[False], abs=1e-6)


def test_peft_puts_no_lora_on_experts_in_four_bits() -> None:
    """Why the two are refused together: put on afterwards it reaches nothing, put on before it breaks."""
    profile = profile_of("qwen3_moe")
    config = policy.peft_config(adapter_for("qwen3_moe", train_experts=True), profile)
    base = FAMILIES["qwen3_moe"].made()
    moe.quantize_experts(base, profile, FOUR_BITS)
    with pytest.warns(match="no parameter was matched"):
        model = get_peft_model(base, config)
    assert not [name for name, _ in model.named_parameters() if "experts.lora" in name]
    later = get_peft_model(FAMILIES["qwen3_moe"].made(), config)
    moe.quantize_experts(later, profile, FOUR_BITS)
    with pytest.warns(match="Could not find any LoRA parametrization"):
        later(input_ids=TOKENS)  # which leaves the adapter's share in the parameter
    with pytest.raises(RuntimeError, match="floating point dtype can require gradients"):
        later(input_ids=TOKENS)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "qwen3_moe",
            {"train_experts": True, "quantization": FOUR_BITS.model_dump()},
            "quantization.experts: peft puts",
        ),
        (
            "deepseek_v3",
            {"train_shared_experts": True, "quantization": FOUR_BITS.model_dump()},
            "train_shared_experts: peft reaches",
        ),
        ("qwen3_moe", {"train_shared_experts": True}, "lists no targets.shared_expert_parameters"),
        ("qwen3_moe", {"train_router": True, "peft": {"lora_dropout": 0.1}}, "train_router: .*lora_dropout"),
        (
            "qwen3_moe",
            {"train_router": True, "peft": {"init_lora_weights": "pissa"}},
            "train_router: .*no start 'pissa'",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        policy.peft_config(adapter_for(family, **changes), profile_of(family))


def test_a_router_that_is_reached_unasked_is_refused() -> None:
    adapter = adapter_for("qwen3_moe", peft={"target_modules": "all-linear"})
    with pytest.raises(UserError, match=r"reaches the router .*adapter\.train_router"):
        attach(FAMILIES["qwen3_moe"].made(), "qwen3_moe", adapter)


def test_counts_on_the_meta_device_are_those_of_the_model() -> None:
    base = FAMILIES["deepseek_v3"].made()
    adapter = adapter_for("deepseek_v3", **everything("deepseek_v3"))
    config = policy.peft_config(adapter, profile_of("deepseek_v3"))
    counts = count(type(base), base.config, config)
    model = attach(base, "deepseek_v3", adapter)
    assert counts == counted(model)
    assert counts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Two layers, four experts: A and B of rank 4 for gate_up (64 -> 64) and down (32 -> 64).
    assert counts.by_part["experts"] == 2 * 4 * 4 * (64 + 64 + 32 + 64)
    assert counts.by_part["shared_experts"] == 2 * 4 * 3 * (64 + 32)
    assert counts.by_part["router"] == 2 * 4 * (64 + 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_load_is_read_from_the_routers(family: str) -> None:
    model = FAMILIES[family].made().train()
    routers = Routers(model)
    mask = torch.ones_like(TOKENS)
    mask[:, 20:] = 0
    model(input_ids=TOKENS, attention_mask=mask)
    layers = FAMILIES[family].sparse_layers
    per_token = 1 if family == "llama4" else 2
    assert tuple(routers.loads) == layers
    assert [int(load.chosen.sum()) for load in routers.loads.values() if load.chosen is not None] == [
        80 * per_token
    ] * 2
    found = routers.measures()
    assert {name for name in found if "layer" not in name} - {"moe/aux_loss"} == {
        "moe/load_entropy",
        "moe/max_share",
        "moe/dead_experts",
    }
    for layer in layers:
        assert 0.25 <= found[f"moe/layer_{layer:02}/max_share"] <= 1
        assert 0 <= found[f"moe/layer_{layer:02}/load_entropy"] <= 1
    assert ("moe/aux_loss" in found) == (family in ("qwen3_moe", "gpt_oss"))
    assert routers.measures() == {}
    model.eval()(input_ids=TOKENS)
    assert routers.measures() == {}


def test_a_router_that_takes_one_expert_has_no_entropy() -> None:
    model = FAMILIES["llama4"].made().train()
    routers = Routers(model)
    with torch.no_grad():
        for layer in FAMILIES["llama4"].sparse_layers:
            model.model.layers[layer].feed_forward.router.weight.zero_()
    model(input_ids=TOKENS)
    found = routers.measures()
    assert (found["moe/load_entropy"], found["moe/max_share"], found["moe/dead_experts"]) == (0.0, 1.0, 6.0)


def test_auxiliary_loss_is_that_of_transformers() -> None:
    model = FAMILIES["qwen3_moe"].made().train()
    routers = Routers(model)
    mask = torch.ones_like(TOKENS)
    mask[1, 10:] = 0
    output = model(input_ids=TOKENS, attention_mask=mask, output_router_logits=True)
    theirs = load_balancing_loss_func(output.router_logits, 4, 2, mask)
    assert routers.measures()["moe/aux_loss"] == pytest.approx(float(theirs), rel=1e-5)
