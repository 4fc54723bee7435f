"""Adapters that are none: each is refused by name, before anything is registered."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy.soundness import check_adapter
from pipelines.product import Product
from tests.release.conftest import Spoil

MakeAdapter = Callable[..., Product]
WEIGHTS = "adapter_model.safetensors"


def settings(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def weights(change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Spoil:
    def spoil(folder: Path) -> None:
        each = {name: change(name, tensor) for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file({name: tensor for name, tensor in each.items() if tensor is not None}, folder / WEIGHTS)

    return spoil


def template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<|im_end|>", 1))


def untrained(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if "lora_B" in name else tensor


def halves_that_cancel(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As PiSSA is saved: what is trained minus what it began with, here the same."""
    if "lora_A" in name:
        return torch.cat([tensor, tensor]).contiguous()
    other = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([other, -other], dim=1).contiguous()


SPOILT: dict[str, tuple[Spoil | None, dict[str, object], str]] = {
    "alpha": (settings(lora_alpha=0), {}, "lora_alpha is 0"),
    "alpha of some": (settings(alpha_pattern={"q_proj": 0}), {}, "q_proj is 0"),
    "no parameter": (weights(lambda name, tensor: None), {}, "holds no parameter: nothing was trainable"),
    "zeros": (weights(lambda name, tensor: torch.zeros_like(tensor)), {}, "the adapter is empty"),
    "no number": (weights(lambda name, tensor: tensor.fill_(float("nan"))), {}, "not finite"),
    "as it began": (weights(untrained), {}, "equals its initial values"),
    "as PiSSA began": (weights(halves_that_cancel), {}, "equals its initial values"),
    "no step": (None, {"steps": 0}, "was trained for 0 steps"),
    "unmatched": (settings(target_modules=["q_proj", "w1"]), {}, "target_modules: 'w1' matches no module"),
    "pattern": (settings(target_modules=r".*\.experts\..*"), {}, "matches no module"),
    "template": (template, {}, "its chat template, with no switches, isn't the one of its training"),
    "switches": (None, {"template": "0" * 64}, "isn't the one of its training"),
    "base": (None, {"base": {"id": "other", "revision": "sha256:0", "license": "MIT"}}, "was trained on other"),
    "4 bit": (None, {"quantized": True}, "adapter.quantization: .* was trained on a base in 4 bit, got one not"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_no_adapter_is_refused(case: str, adapter: MakeAdapter, config: Config) -> None:
    spoil, about, told = SPOILT[case]
    with pytest.raises(UserError, match=told) as error:
        check_adapter(config, adapter(spoil, about))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("about", [{}, {"template": None}])
def test_a_trained_one_is_not(about: dict[str, object], adapter: MakeAdapter, config: Config) -> None:
    check_adapter(config, adapter(None, about))


@pytest.mark.parametrize(
    ("kind", "tensors", "refused"),
    [
        ("IA3", {"m.q_proj.ia3_l": torch.ones(4, 1)}, True),
        ("IA3", {"m.q_proj.ia3_l": torch.tensor([[1.0], [1.5]])}, False),
        ("PREFIX_TUNING", {"prompt_embeddings": torch.zeros(2, 4)}, True),
        ("PREFIX_TUNING", {"prompt_embeddings": torch.ones(2, 4)}, False),
        ("P_TUNING", {"prompt_embeddings": torch.ones(2, 4)}, False),
    ],
)
def test_other_methods_begin_otherwise(
    kind: str, tensors: dict[str, torch.Tensor], refused: bool, adapter: MakeAdapter, config: Config
) -> None:
    def spoil(folder: Path) -> None:
        settings(peft_type=kind, target_modules=["q_proj"] if kind == "IA3" else None)(folder)
        save_file(tensors, folder / WEIGHTS)

    made = adapter(spoil)
    if not refused:
        check_adapter(config, made)
        return
    with pytest.raises(UserError, match=r"equals its initial values|the adapter is empty"):
        check_adapter(config, made)
