"""Starts of LoRA other than zero, and how their adapter stays one of the published base."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from pipelines.config.schema import Model
from pipelines.errors import UserError
from pipelines.policy.base import load_adapter, local_folder
from pipelines.product import Product

ADAPTER = "default"


def on_top(base: Any, profile: Model, adapter: Product) -> PeftModel:
    """The base with an earlier stage's adapter on it, whose weights train on.

    Raises UserError where it was trained on another base than the profile's.
    """
    trained_on = adapter.about["base"]
    if trained_on["revision"] != profile.revision:
        raise UserError(
            f"the adapter in {adapter.folder} was trained on {trained_on['id']} ({trained_on['revision']}); "
            f"model is {profile.id} ({profile.revision})"
        )
    return load_adapter(base, adapter.folder, is_trainable=True)


def save_start(model: PeftModel, folder: Path) -> None:
    """Write the untrained adapter, which `save_over_published_base` subtracts from the trained one."""
    model.save_pretrained(str(folder))


def save_over_published_base(model: PeftModel, folder: Path, start: Path) -> None:
    """Write trained minus untrained as plain LoRA of rank 2r over the untouched base (Meng et al. 2024)."""
    model.save_pretrained(str(folder), path_initial_model_for_weight_conversion=str(start))


@torch.no_grad()
def fit_quantization_error(model: PeftModel, profile: Model) -> None:
    """Set A and B to the best rank-r fit of published minus 4-bit weights (Li et al. 2023, one step).

    The weights are read from the profile's local folder or the Hub's cache, one at a time. Raises
    UserError where the checkpoint names a weight otherwise than the model does.
    """
    files = _weight_files(profile)
    prefix = "base_model.model."
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or not hasattr(module.get_base_layer().weight, "quant_state"):
            continue
        key = f"{name.removeprefix(prefix)}.weight"
        if key not in files:
            raise UserError(f"init_lora_weights: loftq finds no {key} among the weights of {profile.id}")
        with safe_open(files[key], framework="pt") as published:
            _fit(module, published.get_tensor(key))


def _fit(module: LoraLayer, published: torch.Tensor) -> None:
    from bitsandbytes.functional import dequantize_4bit  # optional: only 4-bit bases need it

    quantized = module.get_base_layer().weight
    base = dequantize_4bit(quantized.data, quantized.quant_state).float()
    u, s, vh = torch.linalg.svd(published.to(base.device).float() - base, full_matrices=False)
    rank, root = module.r[ADAPTER], s[: module.r[ADAPTER]].div(module.scaling[ADAPTER]).sqrt()
    module.lora_A[ADAPTER].weight.copy_(root[:, None] * vh[:rank])
    module.lora_B[ADAPTER].weight.copy_(u[:, :rank] * root)


def _weight_files(profile: Model) -> dict[str, Path]:
    folder = local_folder(profile) or Path(
        snapshot_download(profile.id, revision=profile.revision, local_files_only=True)
    )
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            files |= dict.fromkeys(weights.keys(), path)
    return files
