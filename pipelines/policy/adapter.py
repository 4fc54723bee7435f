"""The adapter's configuration for peft, and the checks around its injection."""

import dataclasses
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptEncoderConfig
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import BitsAndBytesConfig, FineGrainedFP8Config, Mxfp4Config

from pipelines.config.modelling import Adapter, Compute, Model
from pipelines.config.nearest import did_you_mean
from pipelines.errors import UserError
from pipelines.policy.moe import check_router, not_parametrized, target_parameters

FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
CONFIGS: dict[str, type[PeftConfig]] = {
    "lora": LoraConfig,
    "ia3": IA3Config,
    "prefix_tuning": PrefixTuningConfig,
    "p_tuning": PromptEncoderConfig,
}
NEED_DATA = ("corda", "eva", "lora_ga")
# Keys of `peft` that have another home in the configuration.
ELSEWHERE = {
    "task_type": "every adapter here is for a causal language model",
    "peft_type": "set adapter.method",
    "loftq_config": "loftq is fitted in one step to the error of adapter.quantization",
    "target_parameters": "set adapter.train_experts, train_shared_experts or train_router; the profile has the names",
}


def peft_config(adapter: Adapter, model: Model) -> PeftConfig:
    """The peft configuration of `adapter` over `model`; UserError names the field that peft can't take."""
    config_class = CONFIGS[adapter.method]
    _check_keys(adapter, config_class)
    _check_start(adapter)
    settings = dict(adapter.peft)
    if parameters := target_parameters(adapter, model):
        settings["target_parameters"] = parameters
    if excluded := not_parametrized(adapter, settings.get("exclude_modules")):
        settings["exclude_modules"] = excluded
    if starts_from_quantization_error(adapter):
        # peft's own LoftQ writes into the base weights; `pipelines.policy.start` moves the adapter alone.
        settings["init_lora_weights"] = True
    try:
        return config_class(task_type="CAUSAL_LM", **settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"adapter.peft: {config_class.__name__} refuses the settings: {error}") from error


def starts_from_quantization_error(adapter: Adapter) -> bool:
    """Whether the adapter starts as LoftQ, from the base's quantisation error."""
    return adapter.peft.get("init_lora_weights") == "loftq"


def changes_base(adapter: Adapter) -> bool:
    """Whether the start moves a part of the base weights into the adapter (PiSSA, OLoRA)."""
    return str(adapter.peft.get("init_lora_weights", "")).startswith(("pissa", "olora"))


def quantization_config(
    adapter: Adapter, published: Mapping[str, Any] | None = None, storage: str | None = None
) -> BitsAndBytesConfig | Mxfp4Config | FineGrainedFP8Config | None:
    """How the base is loaded: in 4 bit, dequantised, or (None) as published.

    `published` is the checkpoint's own `quantization_config`: MXFP4 and FP8 weights have no backward
    pass here, so they are dequantised, and nothing can be quantised twice. `storage` is the type that holds the 4-bit
    weights, null for bytes.
    """
    if published:
        return _dequantized(adapter, published["quant_method"])
    if adapter.quantization is None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=adapter.quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=adapter.quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, adapter.quantization.bnb_4bit_compute_dtype),
        bnb_4bit_quant_storage=getattr(torch, storage) if storage else None,
    )


def keep_differentiable(base: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on the CPU; a no-op for every other base.

    With AVX512-BF16 its first evaluation turns them into a form that has no backward pass, and training
    goes on after it with gradients that end there, without an error. To be called after loading.
    """
    modules: Iterator[Any] = base.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_hardware(adapter: Adapter, compute: Compute) -> None:
    """Refuse, by field and before a model is loaded, what this machine or this combination can't run."""
    if adapter.quantization is not None and find_spec("bitsandbytes") is None:
        raise UserError(f"adapter {adapter.name}: 4-bit loading needs the package bitsandbytes")
    if adapter.method == "prefix_tuning" and compute.gradient_checkpointing:
        raise UserError("compute.gradient_checkpointing: prefix tuning doesn't run with it; set it to false")
    if compute.device == "cuda":
        _check_cuda(adapter, compute)
    else:
        _check_cpu(compute)
    _check_flash(compute)


def check_attached(model: nn.Module, adapter: Adapter, profile: Model) -> dict[str, int]:
    """Count what the adapter reached; UserError when a target matched nothing or nothing is trainable."""
    modules, parameters = _adapted(model)
    targets = adapter.peft.get("target_modules")
    if isinstance(targets, list):
        _check_matched("adapter.peft.target_modules", targets, modules, profile)
    _check_matched("targets", target_parameters(adapter, profile), parameters, profile)
    check_router(adapter, profile, [*modules, *parameters])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trainable:
        raise UserError(f"adapter {adapter.name}: no parameter of {profile.name} is trainable")
    return {
        "adapted_modules": len(modules),
        "adapted_parameters": len(parameters),
        "trainable_parameters": trainable,
    }


def _check_cuda(adapter: Adapter, compute: Compute) -> None:
    if not torch.cuda.is_available():
        raise UserError("compute.device: expected a CUDA device, torch finds none; use compute=cpu")
    wanted = {"compute.dtype": compute.dtype}
    if adapter.quantization is not None:
        wanted["adapter.quantization.bnb_4bit_compute_dtype"] = adapter.quantization.bnb_4bit_compute_dtype
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        for field, dtype in wanted.items():
            if dtype == "bfloat16":
                raise UserError(f"{field}: {torch.cuda.get_device_name()} has no bfloat16; use float16")
    found = torch.cuda.get_device_properties(0).total_memory / 1e9
    # Cards report up to a tenth less than the number they are sold by.
    if compute.memory_gb is not None and found < 0.9 * compute.memory_gb:
        raise UserError(f"compute.memory_gb: expected {compute.memory_gb:g} GB, the device has {found:.1f}")


def _check_cpu(compute: Compute) -> None:
    if compute.dtype == "float16":
        raise UserError("compute.dtype: float16 trains on CUDA only; use float32 or bfloat16")
    if compute.attn_implementation == "flex_attention":
        raise UserError("compute.attn_implementation: flex_attention can't train on the CPU; use sdpa")


def _check_flash(compute: Compute) -> None:
    asked = compute.attn_implementation
    package = FLASH_PACKAGES.get(asked)
    if package is None:
        return
    if compute.device != "cuda":
        raise UserError(f"compute.attn_implementation: {asked} needs a CUDA device; use sdpa")
    if find_spec(package) is None:
        raise UserError(f"compute.attn_implementation: {asked} needs the package {package}")
    if compute.dtype == "float32":
        raise UserError(f"compute.dtype: {asked} runs in bfloat16 and float16 only")


def _adapted(model: nn.Module) -> tuple[list[str], list[str]]:
    modules, parameters = [], []
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            # Two parameters of one module are wrapped one in the other.
            parameters.append(f"{name.replace('.base_layer', '')}.{module.parameter_name}")
        elif isinstance(module, BaseTunerLayer):
            modules.append(name)
    return modules, parameters


def _check_matched(field: str, targets: list[str], names: list[str], profile: Model) -> None:
    for target in targets:
        if not any(name.endswith(f".{target}") for name in names):
            raise UserError(f"{field}: {target!r} matches nothing in {profile.architecture} ({profile.name})")


def _check_keys(adapter: Adapter, config_class: type[PeftConfig]) -> None:
    valid = {field.name for field in dataclasses.fields(config_class) if field.init} - ELSEWHERE.keys()
    for key in adapter.peft:
        if key in ELSEWHERE:
            raise UserError(f"adapter.peft.{key} is not set here: {ELSEWHERE[key]}")
        if key not in valid:
            hint = did_you_mean(key, valid)
            raise UserError(f"adapter.peft.{key} is no field of {config_class.__name__}{hint}")


def _check_start(adapter: Adapter) -> None:
    start = adapter.peft.get("init_lora_weights", True)
    if start == "loftq" and adapter.quantization is None:
        raise UserError("adapter.peft.init_lora_weights: loftq fits the 4-bit error, but adapter.quantization is null")
    if start in NEED_DATA:
        raise UserError(f"adapter.peft.init_lora_weights: {start} starts from data, which no stage gives it")
    if changes_base(adapter) and adapter.quantization is not None:
        raise UserError(f"adapter.peft.init_lora_weights: {start} changes the base, so it can't be in 4 bit")
    if changes_base(adapter) and adapter.peft.get("use_dora"):
        raise UserError(f"adapter.peft.use_dora: can't be saved over the published base with {start}")


def _dequantized(adapter: Adapter, method: str) -> Mxfp4Config | FineGrainedFP8Config:
    if adapter.quantization is not None:
        raise UserError(f"adapter.quantization: the checkpoint is published in {method}; set it to null")
    if method == "mxfp4":
        return Mxfp4Config(dequantize=True)
    if method == "fp8":
        return FineGrainedFP8Config(dequantize=True)
    raise UserError(f"model.id: the checkpoint is published in {method}, which can't be trained here")
