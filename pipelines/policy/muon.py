"""Muon for matrices and AdamW for the rest, as the one optimizer that a trainer, its scheduler and a checkpoint know.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

MATRICES = "matrices"  # the key of a parameter group that says who updates it


class MuonWithAdamW(Optimizer):
    """Two optimizers over one list of groups and one state, which is saved and loaded as any other's."""

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        rest: list[dict[str, Any]],
        muon: Mapping[str, Any],
        adamw: Mapping[str, Any],
    ) -> None:
        """Groups of parameters with their own settings, and the settings of torch's two classes for all others."""
        self._parts: list[Optimizer] = []
        if matrices:
            self._parts.append(Muon([{**group, MATRICES: True} for group in matrices], **muon))
        if rest:
            self._parts.append(AdamW([{**group, MATRICES: False} for group in rest], **adamw))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Groups and state are the whole's, also after these were loaded."""
        for part in self._parts:
            part.param_groups = [g for g in self.param_groups if g[MATRICES] == isinstance(part, Muon)]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def matrices_of(model: nn.Module) -> set[str]:
    """Names of the trainable matrices that are orthogonalised.

    Not embeddings and heads, as in the source, and not LoRA of fused experts: there one matrix holds those of all
    experts, and orthogonal to each other they have no reason to be.
    """
    found = set()
    for path, module in model.named_modules():
        embeds = isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False):
            whole = f"{path}.{name}"
            if parameter.requires_grad and parameter.ndim == 2 and not embeds and "embedding" not in whole:
                found.add(whole)
    stacked = tuple(
        f"{path}.lora_"
        for path, module in model.named_modules()
        if isinstance(module, ParamWrapper) and module.num_experts > 1
    )
    return {name for name in found if not name.startswith(stacked) and "lm_head" not in name}
