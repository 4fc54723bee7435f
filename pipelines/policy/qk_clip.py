"""QK-clip on adapters: what training added to a head's queries and keys shrinks where its attention logits explode.

Kimi Team 2025, "Kimi K2: Open Agentic Intelligence", section 2.1 (arXiv:2507.20534): after a step, a head whose
largest logit S is over tau has its query and key weights multiplied so that their product falls by tau / S; where keys
are shared, the query's alone. There the weights are all trained. Here the base is frozen, so only B of LoRA can be
multiplied: the logit falls towards the base's own, in this step and in every further one in which it is still over tau.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, TrainerCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipelines.config.schema import Config
from pipelines.errors import UserError

MEASURED = "sdpa_with_max_logits"
MAX_LOGITS = "max_logits"  # (heads), an attention module's attribute between a forward pass and the end of its step
ROWS = 512  # queries whose logits are held at once
NORMS = ("q_norm", "k_norm", "qk_norm", "q_layernorm", "query_layernorm")


@torch.no_grad()
def largest_logits(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """The largest logit of each head, (heads).

    `query` is (batch, heads, queries, width), `key` (batch, key heads, keys, width); `mask` (batch, 1, queries, keys)
    is true, or zero, where a query sees a key. None is causal.
    """
    batch, heads, queries, width = query.shape
    shared = query.view(batch, key.shape[1], -1, queries, width)
    found = torch.full((heads,), -torch.inf, device=query.device)
    for start in range(0, queries, ROWS):
        rows = shared[:, :, :, start : start + ROWS]
        logits = (rows @ key.unsqueeze(2).transpose(-1, -2)).float() * scaling
        if mask is None:
            at = torch.arange(start, start + rows.shape[3], device=query.device) + key.shape[2] - queries
            hidden = torch.arange(key.shape[2], device=query.device) > at[:, None]
        else:
            part = mask[:, :, start : start + ROWS, : key.shape[2]]
            hidden = (~part if part.dtype == torch.bool else part < 0).unsqueeze(2)
        found = found.maximum(logits.masked_fill(hidden, -torch.inf).amax((0, 3, 4)).flatten())
    return found


def _measured(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **named: Any
) -> Any:
    """torch's attention; in training the largest logits stay with the module."""
    if module.training:
        scaling = named.get("scaling") or query.shape[-1] ** -0.5
        found = largest_logits(query, key, mask, scaling)
        before = getattr(module, MAX_LOGITS, None)
        setattr(module, MAX_LOGITS, found if before is None else before.maximum(found))
    return sdpa_attention_forward(module, query, key, value, mask, **named)


AttentionInterface.register(MEASURED, _measured)
AttentionMaskInterface.register(MEASURED, sdpa_mask)


@dataclass(frozen=True)
class Head:
    """How the rows of one attention's projections are laid out.

    `query` and `key` are the adapters (key None: shared by heads, or without one). A head of a query has `plain` rows
    that meet a key of its own and `rotated` rows that meet a shared one; a head of a key has `plain` rows, then
    `other` ones that are no keys.
    """

    attention: nn.Module
    query: Linear
    key: Linear | None
    plain: int
    rotated: int
    other: int

    def shrink(self, gamma: torch.Tensor) -> None:
        """Multiplies B of the adapters, so that each head's product of query and key falls by `gamma` (heads)."""
        alone = gamma if self.key is None else gamma.sqrt()
        _scale(self.query, [(alone, self.plain), (gamma, self.rotated)])
        if self.key is not None:
            _scale(self.key, [(alone, self.plain), (torch.ones_like(gamma), self.other)])


class QkClip(TrainerCallback):
    """Clips after each step, and adds the largest logit and how many heads were clipped to each log."""

    def __init__(self, model: Any, config: Config, tau: float) -> None:
        """Raises UserError where there is nothing to clip, or where clipping would do nothing."""
        _check(config)
        self.tau, self.heads = tau, list(_heads(model))
        if not self.heads:
            raise UserError("optimizer.qk_clip: no adapter is on the queries of an attention; see adapter.peft")
        self.fresh, self.largest, self.clipped = False, -torch.inf, 0
        model.get_base_model().set_attn_implementation(MEASURED)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint's weights are loaded by now."""
        layers = [layer for head in self.heads for layer in (head.query, head.key) if layer is not None]
        self.fresh = not any(
            bool(layer.lora_B[name].weight.any()) for layer in layers for name in layer.active_adapters
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises UserError where the base alone is over tau, which no adapter can mend."""
        for head, found in self._read():
            top = float(found.max())
            if self.fresh and top > self.tau:
                raise UserError(
                    f"optimizer.qk_clip.tau: the base's own logits reach {top:.1f}, and a frozen base can't be "
                    f"clipped; set it higher than that, got {self.tau:g}"
                )
            self.largest = max(self.largest, top)
            self.clipped += int((found > self.tau).sum())
            if top > self.tau:
                # A logit below tau leaves its head alone.
                head.shrink(torch.where(found > self.tau, self.tau / found, torch.ones_like(found)))
        self.fresh = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is not None and "loss" in logs and self.largest > -torch.inf:
            logs |= {"qk_clip/max_logit": self.largest, "qk_clip/clipped_heads": float(self.clipped)}
            self.largest, self.clipped = -torch.inf, 0

    def _read(self) -> list[tuple[Head, torch.Tensor]]:
        """Each attention's largest logits of the step, of all processes, which are then forgotten."""
        read = [
            (head, getattr(head.attention, MAX_LOGITS)) for head in self.heads if hasattr(head.attention, MAX_LOGITS)
        ]
        for head, found in read:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
            delattr(head.attention, MAX_LOGITS)
        return read


@torch.no_grad()
def _scale(layer: Linear, parts: list[tuple[torch.Tensor, int]]) -> None:
    """Multiplies the rows of B; each head's are `parts` after one another, as (factor of each head, rows)."""
    factors = torch.cat([factor[:, None].expand(-1, rows) for factor, rows in parts], 1).flatten()
    for name in layer.active_adapters:
        layer.lora_B[name].weight.mul_(factors[:, None].to(layer.lora_B[name].weight))


def _check(config: Config) -> None:
    field, adapter = "optimizer.qk_clip", config.adapter
    if adapter.method != "lora" or adapter.peft.get("use_dora") or adapter.peft.get("lora_bias"):
        raise UserError(f"{field}: multiplies B of plain LoRA, which adapter {adapter.name} isn't")
    if config.compute.attn_implementation != "sdpa":
        raise UserError(
            f"{field}: measures logits beside sdpa, got compute.attn_implementation="
            f"{config.compute.attn_implementation}"
        )


def _heads(model: nn.Module) -> Iterator[Head]:
    """Every attention whose queries have an adapter. Raises UserError where these are normalised afterwards."""
    for path, module in model.named_modules():
        query = getattr(module, "q_b_proj", None) or getattr(module, "q_proj", None)
        if not isinstance(query, LoraLayer):
            continue
        if any(getattr(module, name, None) is not None for name in NORMS):
            raise UserError(
                f"optimizer.qk_clip: {path} normalises its queries, so their size is bounded without it and no "
                "multiplication of weights would change it; set it to null"
            )
        yield _head(module, query)


def _head(module: Any, query: Any) -> Head:
    latent = getattr(module, "kv_b_proj", None)
    if latent is not None:  # multi-head latent attention: a rotated part of the key is shared by all heads
        key, plain, rotated = latent, module.qk_nope_head_dim, module.qk_rope_head_dim
        other = module.v_head_dim
    else:
        own = module.k_proj.out_features == module.q_proj.out_features
        key, plain, rotated, other = module.k_proj if own else None, module.head_dim, 0, 0
    return Head(module, query, key if isinstance(key, LoraLayer) else None, plain, rotated, other)
