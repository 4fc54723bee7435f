"""Base and adapter as one model in full precision, and such models as folders of safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from pipelines.config.schema import Adapter, Model
from pipelines.errors import UserError
from pipelines.policy.attaching import dequantized
from pipelines.policy.base import load_adapter, source
from pipelines.policy.served import completed, load_served

EXACT = "float32"
PROMPTS = ("prefix_tuning", "p_tuning")


def merged(settings: Mapping[str, Any], adapter: Path) -> Any:
    """The adapter merged into the weights that it was trained on, in float32.

    A base that was in 4 bit is dequantised first: merged into the published weights the adapter would correct errors
    that aren't there. Raises UserError where the method can't be merged.
    """
    trained = Adapter.model_validate(completed(settings)["adapter"])
    if trained.method in PROMPTS:
        raise UserError(
            f"export.forms: an adapter of method {trained.method} is no change of weights, it can't be merged"
        )
    return _attached(settings, adapter).merge_and_unload(safe_merge=True)


def bare(settings: Mapping[str, Any], adapter: Path) -> Any:
    """The base alone as the adapter was trained on it, in float32."""
    return _attached(settings, adapter).unload()


def stored_dtype(model: Model) -> str:
    """The number format of the base's files."""
    found = AutoConfig.from_pretrained(**source(model)).dtype
    return EXACT if found is None else str(found).removeprefix("torch.")


def write(model: Any, tokenizer: Any, dtype: str, folder: Path) -> None:
    """The model's folder: safetensors, configuration, tokenizer with its template, generation settings.

    The model is in `dtype` afterwards.
    """
    model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _attached(settings: Mapping[str, Any], adapter: Path) -> Any:
    """The adapter on its base, in float32 and in no quantisation."""
    exact = {**settings, "compute": {**settings["compute"], "dtype": EXACT}}
    served = load_served(exact, adapter)
    if completed(settings)["adapter"]["quantization"] is None:
        return served.model
    return load_adapter(dequantized(served.model.unload()).float(), adapter).eval()


def scaled_config(adapter: Path) -> dict[str, Any]:
    """The adapter's configuration for a program that scales by alpha / r alone.

    Raises UserError where the adapter isn't a plain LoRA.
    """
    found: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    beyond = [
        name
        for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters", "lora_bias")
        if found.get(name)
    ]
    if found["peft_type"] != "LORA" or beyond:
        what = ", ".join(beyond) or found["peft_type"]
        raise UserError(f"export.forms: gguf_adapter: llama.cpp takes plain LoRA, got {what}; export gguf instead")
    if found.get("use_rslora"):
        found |= {"lora_alpha": found["lora_alpha"] * found["r"] ** 0.5, "use_rslora": False}
    return found
