"""How evenly a router spreads tokens over its experts, read from its own outputs while training.

Load balance as in Fedus et al. 2022, "Switch Transformers", section 2.2.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass
class Load:
    """What one router did since it was last read: choices of each expert, probabilities summed over tokens, tokens."""

    num_experts: int
    chosen: torch.Tensor | None = field(default=None)
    probability: torch.Tensor | None = field(default=None)
    tokens: int | torch.Tensor = 0

    def add(self, logits: torch.Tensor, chosen: torch.Tensor) -> None:
        """Counts `logits` (tokens, experts) and the experts `chosen` (tokens, k) of each."""
        counts = torch.bincount(chosen.flatten(), minlength=self.num_experts)
        summed = logits.float().softmax(-1).sum(0)
        self.chosen = counts if self.chosen is None else self.chosen + counts
        self.probability = summed if self.probability is None else self.probability + summed
        self.tokens += len(logits)


class Routers:
    """Hooks on every router of a model; empty where it has none."""

    def __init__(self, model: nn.Module) -> None:
        self.loads: dict[int, Load] = {}
        self.has_auxiliary_loss = False
        self._mask: torch.Tensor | None = None
        for number, (layer, router, index) in enumerate(_routers(model)):
            self._attach(layer if layer is not None else number, router, index)
        # Those models whose class in transformers can compute one; it is added to the loss with output_router_logits.
        self.has_auxiliary_loss = hasattr(model, "router_aux_loss_coef")
        for module in _models(model):
            # TRL calls the backbone past the model's own forward.
            module.register_forward_pre_hook(self._keep_mask, with_kwargs=True)

    def _attach(self, layer: int, router: Any, index: int) -> None:
        def hook(module: Any, _: Any, output: tuple[torch.Tensor, ...]) -> None:
            if module.training:
                self._read(layer, module, output[index].detach(), output[-1])

        self.loads[layer] = Load(router.num_experts)
        router.register_forward_hook(hook)

    @torch.no_grad()
    def _read(self, layer: int, router: Any, logits: torch.Tensor, last: torch.Tensor) -> None:
        """A router's last output is the experts that it chose; one that has no such output takes the top k logits."""
        logits = logits.reshape(-1, logits.shape[-1])
        # Padding is routed like any token, and says nothing of the data.
        if self._mask is not None and self._mask.numel() == len(logits):
            seen = self._mask.reshape(-1).bool()
        else:
            seen = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        chosen = logits.topk(router.top_k, -1).indices if last.is_floating_point() else last.reshape(len(logits), -1)
        self.loads[layer].add(logits[seen], chosen[seen])

    def _keep_mask(self, _: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        mask = named.get("attention_mask")
        self._mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None

    def measures(self) -> dict[str, float]:
        """What the routers did since the last call, and a fresh start. Empty where no token came by.

        Of each layer: `load_entropy`, 1 where all experts have the same load and 0 where one has all; `max_share`, the
        largest load; `dead_experts`, how many had none. Then the mean or the worst of these over layers, and
        `aux_loss` of those models that have one (1 times k at best).
        """
        used = {layer: load for layer, load in sorted(self.loads.items()) if load.chosen is not None}
        found: dict[str, float] = {}
        each = {layer: _spread(load) for layer, load in used.items()}
        for layer, spread in each.items():
            found |= {f"moe/layer_{layer:02}/{name}": value for name, value in spread.items()}
        if each:
            found |= {
                "moe/load_entropy": sum(spread["load_entropy"] for spread in each.values()) / len(each),
                "moe/max_share": max(spread["max_share"] for spread in each.values()),
                "moe/dead_experts": sum(spread["dead_experts"] for spread in each.values()),
            }
            if self.has_auxiliary_loss:
                found["moe/aux_loss"] = auxiliary_loss(list(used.values()))
        self.loads = {layer: Load(load.num_experts) for layer, load in self.loads.items()}
        return found


def auxiliary_loss(loads: list[Load]) -> float:
    """Experts times the product of their load and their mean probability, summed, over all layers at once."""
    tokens = sum(int(load.tokens) for load in loads)
    chosen = torch.stack([load.chosen for load in loads if load.chosen is not None]).sum(0) / tokens
    probability = torch.stack([load.probability for load in loads if load.probability is not None]).sum(0) / tokens
    return float(loads[0].num_experts * (chosen * probability).sum())


def _spread(load: Load) -> dict[str, float]:
    if load.chosen is None:
        raise AssertionError("a load is read where tokens came by")
    share = (load.chosen / load.chosen.sum()).double().cpu()
    entropy = float(torch.special.entr(share).sum()) / math.log(load.num_experts)
    return {
        "load_entropy": entropy,
        "max_share": float(share.max()),
        "dead_experts": float((share == 0).sum()),
    }


def _models(model: nn.Module) -> Iterator[Any]:
    """The model and its backbone, where transformers can record its routers."""
    for module in model.modules():
        if "router_logits" in (getattr(type(module), "_can_record_outputs", None) or {}):
            yield module


def _routers(model: nn.Module) -> Iterator[tuple[int | None, Any, int]]:
    """Layer, module and place of the logits in its output, by what transformers says that it can record."""
    recorders = [module._can_record_outputs["router_logits"] for module in _models(model)]
    kinds = {recorder.target_class: recorder.index for recorder in recorders}
    for name, module in model.named_modules():
        for kind, index in kinds.items():
            if isinstance(module, kind):
                layer = LAYER.search(name)
                yield int(layer.group(1)) if layer else None, module, index
