"""Adapter methods trained for real on a tiny Qwen3, and the refusals before that."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from pipelines.config.schema import Adapter, Compute, Model
from pipelines.errors import UserError
from pipelines.policy import adapter as policy
from pipelines.policy import start

CONF = Path(__file__).parents[2] / "conf"
ADAPTERS = sorted(path.stem for path in (CONF / "adapter").glob("*.yaml"))
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
TOKENS = torch.arange(96).reshape(4, 24)


def block(group: str, name: str, **changes: Any) -> dict[str, Any]:
    composed = OmegaConf.create(
        {
            "model": OmegaConf.load(CONF / "model" / "tiny.yaml"),
            group: OmegaConf.load(CONF / group / f"{name}.yaml"),
        }
    )
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)[group]  # type: ignore[index,call-overload,assignment]
    return values | changes


def adapter_named(name: str, peft: dict[str, Any] | None = None, **changes: Any) -> Adapter:
    values = block("adapter", name, **changes)
    return Adapter.model_validate(values | {"peft": values["peft"] | (peft or {})})


def profile_at(folder: Path, **changes: Any) -> Model:
    values = block("model", "tiny", id=str(folder))
    return Model.model_validate(values | {"targets": values["targets"] | changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base")
    Qwen3ForCausalLM(Qwen3Config(**SIZES)).save_pretrained(path)
    return path


def load(folder: Path, adapter: Adapter) -> Any:
    base = Qwen3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=policy.quantization_config(adapter)
    )
    policy.keep_differentiable(base)
    return base


def attach(base: nn.Module, adapter: Adapter, profile: Model) -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model(base, policy.peft_config(adapter, profile))
    if policy.starts_from_quantization_error(adapter):
        start.fit_quantization_error(model, profile)
    return model


def train(model: nn.Module, steps: int = 2) -> list[float]:
    torch.manual_seed(2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=TOKENS).logits
    return found


def frozen(model: PeftModel) -> dict[str, torch.Tensor]:
    return {key: p.detach().clone() for key, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name", ADAPTERS)
def test_method_trains_and_reloads_over_the_published_base(name: str, folder: Path, tmp_path: Path) -> None:
    adapter, profile = adapter_named(name), profile_at(folder)
    base = load(folder, adapter)
    model = attach(base, adapter, profile)
    assert policy.check_attached(model, adapter, profile)["trainable_parameters"] > 0
    before = frozen(model)
    if policy.changes_base(adapter):
        start.save_start(model, tmp_path / "start")
    untrained = logits(model)

    losses = train(model.train())
    assert all(torch.tensor(losses).isfinite())
    assert losses[1] < losses[0]
    after = frozen(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)

    trained = logits(model)
    assert (trained - untrained).abs().max() > 1e-3
    if policy.changes_base(adapter):
        start.save_over_published_base(model, tmp_path / "adapter", tmp_path / "start")
    else:
        model.save_pretrained(str(tmp_path / "adapter"))
    fresh = PeftModel.from_pretrained(load(folder, adapter), str(tmp_path / "adapter"))
    tolerance = 1e-3 if adapter.quantization else 1e-5
    assert (logits(fresh) - trained).abs().max() < tolerance


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "pissa"])
def test_training_leaves_the_base_as_published(name: str, folder: Path) -> None:
    adapter, profile = adapter_named(name), profile_at(folder)
    published = {key: p.clone() for key, p in load(folder, adapter).state_dict().items()}
    model = attach(load(folder, adapter), adapter, profile)
    train(model)
    held = {key.replace(".base_layer", ""): p for key, p in model.get_base_model().state_dict().items()}
    assert published.keys() <= held.keys()
    assert all(torch.equal(value, held[key]) for key, value in published.items())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_untrained_start_is_saved_as_nothing(init: str, folder: Path, tmp_path: Path) -> None:
    adapter, profile = adapter_named("pissa", {"init_lora_weights": init}), profile_at(folder)
    model = attach(load(folder, adapter), adapter, profile)
    start.save_start(model, tmp_path / "start")
    start.save_over_published_base(model, tmp_path / "adapter", tmp_path / "start")
    config = LoraConfig.from_pretrained(str(tmp_path / "adapter"))
    assert (config.r, config.lora_alpha, config.init_lora_weights) == (64, 64, True)
    fresh = PeftModel.from_pretrained(load(folder, adapter), str(tmp_path / "adapter"))
    assert (logits(fresh) - logits(load(folder, adapter))).abs().max() < 1e-5


def test_loftq_starts_closer_to_the_published_base_than_zero_does(folder: Path) -> None:
    profile, plain = profile_at(folder), adapter_named("lora")
    published = logits(load(folder, plain))
    errors = {}
    for name in ("qlora", "loftq"):
        adapter = adapter_named(name)
        errors[name] = float((logits(attach(load(folder, adapter), adapter, profile)) - published).norm())
    assert errors["loftq"] < 0.8 * errors["qlora"]


def test_fused_experts_train_and_reload(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).save_pretrained(tmp_path / "base")
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapter = adapter_named("lora", {"r": 4, "target_modules": attention}, train_experts=True)
    profile = profile_at(tmp_path / "base", target_parameters=experts)
    model = attach(Qwen3MoeForCausalLM.from_pretrained(tmp_path / "base"), adapter, profile)
    counts = policy.check_attached(model, adapter, profile)
    assert (counts["adapted_modules"], counts["adapted_parameters"]) == (8, 4)
    losses = train(model)
    assert losses[1] < losses[0]
    moved = [key for key, p in model.named_parameters() if "experts" in key and "lora_B" in key and p.any()]
    assert len(moved) == 4
    trained = logits(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    fresh = PeftModel.from_pretrained(Qwen3MoeForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter"))
    assert (logits(fresh) - trained).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "peft", "changes", "message"),
    [
        ("lora", {"lora_alfa": 8}, {}, r"adapter\.peft\.lora_alfa .*LoraConfig.*lora_alpha"),
        ("ia3", {"r": 8}, {}, r"adapter\.peft\.r is no field of IA3Config"),
        ("lora", {"target_parameters": ["x"]}, {}, r"target_parameters is not set here: .*train_experts"),
        ("loftq", {"loftq_config": {"loftq_iter": 5}}, {}, "loftq is fitted in one step"),
        ("lora", {"layers_pattern": "layers"}, {}, r"adapter\.peft: LoraConfig refuses"),
        ("lora", {"init_lora_weights": "loftq"}, {}, "adapter.quantization is null"),
        ("qlora", {"init_lora_weights": "pissa"}, {}, "pissa changes the base"),
        ("lora", {"init_lora_weights": "eva"}, {}, "eva starts from data"),
        ("dora", {"init_lora_weights": "pissa"}, {}, r"adapter\.peft\.use_dora"),
        ("ia3", {}, {"train_experts": True}, "ia3 can't reach fused experts"),
        ("lora", {}, {"train_experts": True}, r"tiny lists no targets\.target_parameters"),
        ("pissa", {}, {"train_experts": True}, "fused experts have no start 'pissa'"),
    ],
)
def test_peft_config_refuses(
    name: str, peft: dict[str, Any], changes: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(UserError, match=message):
        policy.peft_config(adapter_named(name, peft, **changes), profile_at(folder))


@pytest.mark.parametrize("peft", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_fused_experts_refuse_dropout_and_dora(peft: dict[str, Any], folder: Path) -> None:
    profile = profile_at(folder, target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(UserError, match=f"fused experts don't work with adapter.peft.{next(iter(peft))}"):
        policy.peft_config(adapter_named("lora", peft, train_experts=True), profile)


def test_a_target_that_matches_nothing_is_refused(folder: Path) -> None:
    adapter = adapter_named("lora", {"target_modules": ["q_proj", "qkv_proj"]})
    model = attach(load(folder, adapter), adapter, profile_at(folder))
    with pytest.raises(UserError, match="'qkv_proj' matches nothing in Qwen3ForCausalLM"):
        policy.check_attached(model, adapter, profile_at(folder))


def test_a_frozen_adapter_is_refused(folder: Path) -> None:
    adapter = adapter_named("lora")
    model = attach(load(folder, adapter), adapter, profile_at(folder))
    model.requires_grad_(False)
    with pytest.raises(UserError, match="no parameter of tiny is trainable"):
        policy.check_attached(model, adapter, profile_at(folder))


def test_four_bit_settings_reach_bitsandbytes() -> None:
    config: Any = policy.quantization_config(adapter_named("qlora"))
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert (config.bnb_4bit_use_double_quant, config.bnb_4bit_compute_dtype) == (True, torch.bfloat16)
    assert policy.quantization_config(adapter_named("lora")) is None


@pytest.mark.parametrize("method", ["mxfp4", "fp8"])
def test_a_quantised_checkpoint_is_dequantised(method: str) -> None:
    config: Any = policy.quantization_config(adapter_named("lora"), {"quant_method": method})
    assert (config.quant_method, config.dequantize) == (method, True)
    with pytest.raises(UserError, match=f"published in {method}"):
        policy.quantization_config(adapter_named("qlora"), {"quant_method": method})


def test_a_checkpoint_that_cannot_be_dequantised_is_refused() -> None:
    with pytest.raises(UserError, match="published in gptq"):
        policy.quantization_config(adapter_named("lora"), {"quant_method": "gptq"})


def test_four_bit_gradients_are_the_same_after_an_evaluation(folder: Path) -> None:
    adapter = adapter_named("qlora")
    model = attach(load(folder, adapter), adapter, profile_at(folder))
    before = gradients(model)
    logits(model)
    after = gradients(model)
    assert all(torch.equal(before[key], after[key]) for key in before)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def compute_named(name: str, **changes: Any) -> Compute:
    shared = block("strategy", "ddp")
    return Compute.model_validate({**block("compute", name), **shared, **changes})


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_method_is_allowed_on_the_cpu(name: str) -> None:
    policy.check_hardware(adapter_named(name), compute_named("cpu"))


@pytest.mark.parametrize(
    ("adapter", "changes", "message"),
    [
        ("lora", {"dtype": "float16"}, r"compute\.dtype: float16"),
        ("lora", {"attn_implementation": "flash_attention_2"}, "flash_attention_2 needs a CUDA device"),
        ("lora", {"attn_implementation": "flex_attention"}, "flex_attention can't train on the CPU"),
        ("prefix_tuning", {"gradient_checkpointing": True}, r"compute\.gradient_checkpointing"),
    ],
)
def test_the_cpu_refuses(adapter: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        policy.check_hardware(adapter_named(adapter), compute_named("cpu", **changes))


def test_missing_bitsandbytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "find_spec", lambda _: None)
    policy.check_hardware(adapter_named("lora"), compute_named("cpu"))
    with pytest.raises(UserError, match="bitsandbytes"):
        policy.check_hardware(adapter_named("qlora"), compute_named("cpu"))


def test_cuda_profile_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"compute\.device: expected a CUDA device"):
        policy.check_hardware(adapter_named("lora"), compute_named("gpu_24gb"))


class Card:
    """What `torch.cuda` would say of a card, since tests run without one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gigabytes: float, bfloat16: bool) -> None:
        properties = type("Properties", (), {"total_memory": int(gigabytes * 1e9)})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bfloat16)


@pytest.mark.parametrize(
    ("gigabytes", "bfloat16", "adapter", "changes", "message"),
    [
        (24.1, False, "lora", {}, r"compute\.dtype: Card has no bfloat16"),
        (24.1, False, "qlora", {"dtype": "float16"}, "bnb_4bit_compute_dtype: Card has no bfloat16"),
        (15.8, True, "lora", {}, r"compute\.memory_gb: expected 24 GB, the device has 15\.8"),
        (24.1, True, "lora", {"attn_implementation": "flash_attention_2"}, "needs the package flash_attn"),
    ],
)
def test_a_card_refuses(
    gigabytes: float,
    bfloat16: bool,
    adapter: str,
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Card(monkeypatch, gigabytes, bfloat16)
    if "attn_implementation" in changes:
        monkeypatch.setattr(policy, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=message):
        policy.check_hardware(adapter_named(adapter), compute_named("gpu_24gb", **changes))


def test_a_card_of_the_profile_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch, 22.9, bfloat16=True)
    policy.check_hardware(adapter_named("qlora"), compute_named("gpu_24gb"))
