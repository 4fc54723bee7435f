"""Equal prompts of a batch are computed once, and what follows goes on from their keys and values.

The answers to a prompt share all of its tokens, and where answers are short nearly all of the work goes into computing
the prompt for each of them. What comes out is the same up to rounding: a prompt's keys and values don't depend on what
follows, and gradients reach them through every answer.
"""

import copy
from typing import Any

import torch
from transformers import DynamicCache

ATTENTION = {"full_attention", "sliding_attention"}


def only_attends(model: Any) -> bool:
    """Whether all that a layer keeps of earlier tokens are their keys and values, in a cache that grows."""
    if getattr(model.generation_config, "cache_implementation", None) not in (None, "dynamic"):
        return False
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ATTENTION) <= ATTENTION


def prefilled(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[DynamicCache, torch.Tensor]:
    """Keys and values of the different rows of `ids` and `mask`, both (batch, length), and which is each row's."""
    length = ids.size(1)
    rows, which = torch.unique(torch.cat([ids, mask], dim=1), dim=0, return_inverse=True)
    cache = DynamicCache(config=model.config.get_text_config())
    if length:
        model(
            input_ids=rows[:, :length],
            attention_mask=rows[:, length:],
            position_ids=positions(rows[:, length:]),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return cache, which


def spread(cache: DynamicCache, which: torch.Tensor) -> DynamicCache:
    """A cache with one row for each number in `which`; gradients reach the rows of `cache`."""
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in found.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[which], layer.values[which]
    return found


def positions(mask: torch.Tensor) -> torch.Tensor:
    """As `generate` counts them: padding on the left doesn't."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
