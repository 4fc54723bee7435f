"""How many parameters an adapter trains, and of what: counted on the real injection, never by a formula.

peft's `all-linear` at rank 16 means 996 M parameters on Qwen3-30B-A3B and 8 M on gpt-oss-20b; which of them are the
experts' can only be seen in what was injected.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn

# The first that matches; a router's projection is called gate, an MLP's gate_proj.
PARTS = (
    ("router", re.compile(r"\.(gate|router|shared_expert_gate)\.")),
    ("shared_experts", re.compile(r"\.shared_experts?\.")),
    ("experts", re.compile(r"\.experts\.")),
    ("attention", re.compile(r"\.(self_attn|attention|attn|linear_attn|mixer)\.")),
    ("mlp", re.compile(r"\.(mlp|feed_forward)\.")),
)
OTHER = "other"


@dataclass(frozen=True)
class Counts:
    """Parameters: `total` of the model with its adapter, `trainable`, and those by part of the model."""

    total: int
    trainable: int
    by_part: dict[str, int]

    def once(self) -> Callable[[], dict[str, float]]:
        """A measure of what is trained, by part, that is there the first time alone."""
        told = [{f"trainable/{part}": float(size) for part, size in self.by_part.items()}]
        return lambda: told.pop() if told else {}


def count(architecture: type[Any], config: Any, peft_config: PeftConfig) -> Counts:
    """The counts of `architecture(config)`, a transformers class, with the adapter injected on the meta device."""
    with torch.device("meta"):
        return counted(get_peft_model(architecture(config), peft_config))


def counted(model: nn.Module) -> Counts:
    """The counts of a model that has its adapter. Parameters in 4 bit count as they are packed in `total`."""
    by_part: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            by_part[part] = by_part.get(part, 0) + parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    return Counts(total, sum(by_part.values()), by_part)


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: one of `PARTS`, or other."""
    return next((part for part, pattern in PARTS if pattern.search(name)), OTHER)
