"""Mixtures of experts: which of their parameters an adapter trains, experts in 4 bit, and what is really stored."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from pipelines.config.block import Quantization
from pipelines.config.modelling import Adapter, Model
from pipelines.errors import UserError

# bitsandbytes keeps a 4-bit parameter below this name, which ends like a projection of the experts.
PARAMETRIZED = r".*\.parametrizations\..*"


def target_parameters(adapter: Adapter, model: Model) -> list[str]:
    """The parameters that peft reaches by name: fused experts, shared experts and router, as the adapter asks.

    Raises UserError where the profile lists none, or where peft can't train them with these settings.
    """
    asked = {
        "train_experts": ("target_parameters", model.targets.target_parameters),
        "train_shared_experts": ("shared_expert_parameters", model.targets.shared_expert_parameters),
        "train_router": ("router_parameters", model.targets.router_parameters),
    }
    found: list[str] = []
    for key, (field, names) in asked.items():
        if getattr(adapter, key):
            _check_trainable(adapter, model, f"adapter.{key}", field, names)
            found += names
    if adapter.quantization is not None:
        _check_quantized(adapter, adapter.quantization)
    return found


def not_parametrized(adapter: Adapter, exclude: str | None) -> str | None:
    """peft's `exclude_modules`, which keeps it from what holds a 4-bit expert parameter."""
    if adapter.quantization is None or not adapter.quantization.experts or adapter.method not in ("lora", "ia3"):
        return exclude
    return PARAMETRIZED if exclude is None else f"(?:{exclude})|{PARAMETRIZED}"


def check_router(adapter: Adapter, model: Model, reached: list[str]) -> None:
    """Raises UserError where the adapter reached the router unasked, as peft's all-linear does."""
    routers = tuple(f".{name}" for name in model.targets.router_parameters)
    if not adapter.train_router and (found := [name for name in reached if routers and name.endswith(routers)]):
        raise UserError(
            f"adapter.peft.target_modules: reaches the router ({found[0]}); name the modules, or set "
            "adapter.train_router=true"
        )


def quantize_experts(base: nn.Module, model: Model, quantization: Quantization | None) -> int:
    """Puts the fused experts of a loaded base into 4 bit, one at a time; how many parameters that were.

    They are turned back to the base's dtype whenever they are read, which has no gradient to the 4-bit values and
    needs none.
    """
    if quantization is None or not quantization.experts:
        return 0
    from bitsandbytes.nn.parametrize import replace_parameter_4bit  # optional: only 4-bit bases need it

    found = list(_fused(base, model.targets.target_parameters))
    for module, name in found:
        replace_parameter_4bit(
            module,
            name,
            compress_statistics=quantization.bnb_4bit_use_double_quant,
            quant_type=quantization.bnb_4bit_quant_type,
        )
    return len(found)


def stored(model: nn.Module) -> dict[str, int]:
    """Bytes of what isn't trained, by dtype; `4 bit` with the scales that belong to it."""
    sizes: dict[str, int] = {}
    modules: Iterator[Any] = model.modules()
    for module in modules:
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if not tensor.requires_grad:
                state = getattr(tensor, "quant_state", None) or _state_of(module, name)
                kind = "4 bit" if state else str(tensor.dtype).removeprefix("torch.")
                sizes[kind] = sizes.get(kind, 0) + tensor.nbytes + _scales(state)
    return sizes


def told(model: nn.Module) -> str:
    """What is stored, in a line: `0.52 GB in 4 bit, 1.24 GB in bfloat16`."""
    return ", ".join(f"{gigabytes(size)} in {kind}" for kind, size in sorted(stored(model).items()))


def gigabytes(size: int) -> str:
    """Bytes for people; what is under 10 MB in megabytes."""
    return f"{size / 1e9:.2f} GB" if size >= 10**7 else f"{size / 1e6:.2f} MB"


def experts_left(model: nn.Module, profile: Model) -> int:
    """Bytes of fused experts that are not in 4 bit."""
    return sum(getattr(module, name).nbytes for module, name in _fused(model, profile.targets.target_parameters))


def _fused(model: nn.Module, names: list[str]) -> Iterator[tuple[nn.Module, str]]:
    """The modules that hold a 3-D parameter of these names as a parameter of their own."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            whole = f"{path}.{name}".replace(".base_layer", "")
            if parameter.ndim == 3 and whole.endswith(tuple(f".{wanted}" for wanted in names)):
                yield module, name


def _state_of(holder: nn.Module, name: str) -> Any:
    """The quantisation state beside a parametrized 4-bit parameter; None for any other."""
    if name != "original" or not isinstance(holder, parametrize.ParametrizationList):
        return None
    return next((part.quant_state for part in holder if hasattr(part, "quant_state")), None)


def _scales(state: Any) -> int:
    if state is None:
        return 0
    own = sum(tensor.nbytes for tensor in (state.absmax, state.code) if isinstance(tensor, torch.Tensor))
    return own + (_scales(state.state2) if state.nested else 0)


def _check_trainable(adapter: Adapter, model: Model, key: str, field: str, names: list[str]) -> None:
    what = "fused experts" if key == "adapter.train_experts" else "parameters reached by name"
    if adapter.method != "lora":
        raise UserError(f"{key}: {adapter.method} can't reach {what}, lora can")
    if (start := adapter.peft.get("init_lora_weights", True)) is not True:
        raise UserError(f"{key}: {what} have no start {start!r}")
    if not names:
        raise UserError(f"{key}: {model.name} lists no targets.{field}")
    for refused in ("lora_dropout", "use_dora", "lora_bias"):
        if adapter.peft.get(refused):
            raise UserError(f"{key}: {what} don't work with adapter.peft.{refused}")


def _check_quantized(adapter: Adapter, quantization: Quantization) -> None:
    if adapter.train_experts and quantization.experts:
        raise UserError(
            "adapter.quantization.experts: peft puts no LoRA on experts in 4 bit; set it to false, which leaves them "
            "in 16 bit, or adapter.train_experts to false"
        )
    if adapter.train_shared_experts:
        raise UserError(
            "adapter.train_shared_experts: peft reaches these projections by their weight, which 4-bit loading packs; "
            "set adapter.quantization to null"
        )
