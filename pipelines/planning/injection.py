"""Counts by building the real architecture on the meta device and letting peft inject the adapter."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Adapter, Model
from pipelines.errors import UserError
from pipelines.planning.facts import Counts


def built(settings: Mapping[str, Any]) -> Any:
    """The bfloat16 model of a transformers configuration, its weights wherever the mode in force puts them.

    Raises UserError where transformers doesn't know the architecture.
    """
    import transformers
    from transformers import AutoConfig

    values = copy.deepcopy(dict(settings))  # transformers changes nested ones in place
    name, kind = values.pop("architecture"), values.pop("model_type")
    for loading in ("quantization_config", "dtype", "torch_dtype", "transformers_version"):
        values.pop(loading, None)
    cls = getattr(transformers, name, None)
    if cls is None:
        known = [found for found in dir(transformers) if found.endswith(("ForCausalLM", "ForConditionalGeneration"))]
        raise UserError(f"model.architecture: transformers has no {name}{did_you_mean(name, known)}")
    try:
        config = AutoConfig.for_model(kind, **values)
    except ValueError:
        raise UserError(f"model.id: config.json says model_type {kind}, which transformers doesn't know") from None
    return cls._from_config(config, dtype=torch.bfloat16)


def injected(model: Any, peft: Any) -> Any:
    """The model with the adapter in it, as peft puts it there."""
    from peft import get_peft_model

    return get_peft_model(model, peft, low_cpu_mem_usage=True)


def counts_of(settings: Mapping[str, Any]) -> Counts:
    """The base model's parameters, counted on the meta device."""
    with torch.device("meta"):
        model = built(settings)
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    experts = [p for p in model.parameters() if p.dim() == 3]
    fused = sum(p.numel() for p in experts)
    embedding = model.get_input_embeddings().weight
    tied = head is None or head.weight is embedding
    return Counts(
        total=sum(p.numel() for p in model.parameters()),
        linear=sum(m.weight.numel() for m in linear),
        embedding=embedding.numel(),
        head=0 if tied else head.weight.numel(),
        experts=fused,
        active_experts=round(fused * _share(text)) if fused else 0,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        kv_width=text.num_hidden_layers * _kv_width(text),
        attention_width=text.num_hidden_layers * text.num_attention_heads * _value_width(text),
        largest_layer=max(_layers(model), default=0),
        largest_linear=max(m.weight.numel() for m in linear),
    )


def _share(text: Any) -> float:
    """Of a layer's experts those that work on a token."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    there = next(int(getattr(text, name)) for name in names if getattr(text, name, None))
    return float(text.num_experts_per_tok) / there


def _value_width(text: Any) -> int:
    return int(getattr(text, "v_head_dim", None) or getattr(text, "head_dim", None) or _plain_width(text))


def _plain_width(text: Any) -> int:
    return int(text.hidden_size // text.num_attention_heads)


def _kv_width(text: Any) -> int:
    """Cached values of a token in one layer: latent attention is cached expanded, as transformers does."""
    if getattr(text, "kv_lora_rank", None):
        return int(text.num_attention_heads * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim))
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * int(heads) * _value_width(text)


def _layers(model: Any) -> list[int]:
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    return [sum(p.numel() for p in layer.parameters()) for found in lists for layer in found]


def trainable_of(settings: Mapping[str, Any], model: Model, adapter: Adapter) -> int:
    """Parameters that are trained, counted after peft's own injection. Raises UserError as training would."""
    from pipelines.policy.adapter import check_attached, peft_config

    with torch.device("meta"):
        base = built(settings)
        found = injected(base, peft_config(adapter, model))
    return check_attached(found, adapter, model)["trainable_parameters"]
