"""An adapter on a base that others share, and an adapter in the weights of its base."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from pipelines.policy.base import load_adapter

MERGEABLE = ("LORA", "IA3")  # peft's types whose update is one of weights


@contextlib.contextmanager
def attached(base: Any, adapter: Path) -> Iterator[Any]:
    """The base with the adapter on it, taken off again afterwards."""
    model = load_adapter(base, adapter).eval()
    try:
        yield model
    finally:
        if hasattr(model, "unload"):
            model.unload()


@torch.no_grad()
def merged(base: Any, adapter: Path) -> Any:
    """The base with the adapter in its weights; `base` itself is changed.

    What was trained against 4-bit weights corrects those, not the published ones: they are turned back into the base's
    dtype first, as they are. Raises ValueError for an adapter that is no update of weights.
    """
    model = load_adapter(dequantized(base), adapter).eval()
    kind = str(model.active_peft_config.peft_type.value)
    if kind not in MERGEABLE:
        raise ValueError(f"an adapter of type {kind} is no update of weights")
    return model.merge_and_unload(safe_merge=True).eval()


@torch.no_grad()
def dequantized(base: Any) -> Any:
    """The base with every 4-bit weight, fused experts too, replaced by what it stands for; any other base as it is."""
    dtype = base.dtype
    for name, module in list(base.named_modules()):
        kind: Any = module
        if hasattr(getattr(kind, "weight", None), "quant_state"):
            holder, _, own = name.rpartition(".")
            setattr(base.get_submodule(holder), own, _plain(kind, dtype))
        elif parametrize.is_parametrized(module):
            for parameter in list(kind.parametrizations):
                parametrize.remove_parametrizations(module, parameter, leave_parametrized=True)
    if getattr(base.config, "quantization_config", None) is not None and getattr(base, "is_loaded_in_4bit", False):
        del base.config.quantization_config
        base.is_loaded_in_4bit = base.is_quantized = False
        base.hf_quantizer = base.quantization_method = None
    return base


def _plain(module: Any, dtype: torch.dtype) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit  # optional: only 4-bit bases need it

    weight = dequantize_4bit(module.weight.data, module.weight.quant_state).to(dtype)
    rows, columns = weight.shape
    plain = nn.Linear(columns, rows, bias=module.bias is not None, device=weight.device, dtype=dtype)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.to(dtype), requires_grad=False)
    return plain
