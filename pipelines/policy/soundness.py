"""Whether an adapter is one: trained, of its base, for its chat template. What isn't is never registered."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy.base import load_tokenizer, load_tokenizer_from, template_switches
from pipelines.policy.template import digest_of_template
from pipelines.product import Product

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNTRAINED = 1e-6  # of what the factors of an update could make: what rounding leaves of one that is none
Weights = Mapping[str, torch.Tensor]


def check_adapter(config: Config, adapter: Product) -> None:
    """Raises UserError naming what keeps the adapter from being what this configuration says it is."""
    where = f"package.adapter: {adapter.folder}"
    _check_base(config, adapter, where)
    settings = json.loads(adapter.file(SETTINGS).read_text(encoding="utf-8"))
    _check_settings(settings, where)
    weights = load_file(adapter.file(WEIGHTS))
    _check_weights(weights, adapter, where)
    _check_targets(settings, weights, where)
    _check_start(settings, weights, where)
    _check_template(config, adapter, where)


def _check_base(config: Config, adapter: Product, where: str) -> None:
    base, model = adapter.about["base"], config.model
    if base["revision"] != model.revision:
        raise UserError(
            f"{where} was trained on {base['id']} ({base['revision']}); expected model {model.id} ({model.revision})"
        )
    trained, given = bool(adapter.about.get("quantized")), config.adapter.quantization is not None
    if trained != given:
        told = {True: "in 4 bit", False: "not in 4 bit"}
        raise UserError(
            f"adapter.quantization: {adapter.folder} was trained on a base {told[trained]}, got one {told[given]}"
        )


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    if settings.get("peft_type") != "LORA":
        return
    alphas = {"lora_alpha": settings.get("lora_alpha"), **(settings.get("alpha_pattern") or {})}
    for name, alpha in alphas.items():
        if not alpha:
            raise UserError(f"{where}: {name} is {alpha}: its update is multiplied by nothing; expected above 0")


def _check_weights(weights: Weights, adapter: Product, where: str) -> None:
    if not sum(tensor.numel() for tensor in weights.values()):
        raise UserError(f"{where}: {WEIGHTS} holds no parameter: nothing was trainable")
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"{where}: {name} holds values that are not finite")
    if not any(bool(tensor.count_nonzero()) for tensor in weights.values()):
        raise UserError(f"{where}: every value of {WEIGHTS} is zero: the adapter is empty")
    if adapter.about.get("steps") == 0:
        raise UserError(f"{where}: was trained for 0 steps: it is as it began")


def _check_targets(settings: Mapping[str, Any], weights: Weights, where: str) -> None:
    """What the adapter says it changes has to be among what its file holds."""
    wanted = settings.get("target_modules") or []
    held = {_module(name) for name in weights}
    if isinstance(wanted, str):
        if wanted != "all-linear" and not any(re.fullmatch(wanted, name) for name in held):
            raise UserError(f"{where}: target_modules {wanted!r} matches no module that its weights are of")
        return
    for target in sorted(wanted):
        if not any(name == target or name.endswith(f".{target}") for name in held):
            raise UserError(f"{where}: target_modules: {target!r} matches no module that its weights are of")


def _module(name: str) -> str:
    """`model.layers.0.mlp.up_proj` of `base_model.model.model.layers.0.mlp.up_proj.lora_A.weight`."""
    return re.split(r"\.(?:lora_|ia3_l)", name.removeprefix("base_model.model."))[0].replace(".base_layer", "")


def _check_start(settings: Mapping[str, Any], weights: Weights, where: str) -> None:
    """LoRA begins as an update of zero and (IA)3 as factors of one; a learned prompt's beginning is random."""
    kind = settings.get("peft_type")
    if kind == "LORA" and not settings.get("modules_to_save"):
        begun = all(_is_nothing(*pair) for pair in _factors(weights))
    elif kind == "IA3":
        begun = all(bool((tensor == 1).all()) for tensor in weights.values())
    else:
        return
    if begun:
        raise UserError(f"{where}: equals its initial values: it changes nothing of the base")


def _factors(weights: Weights) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """The pairs A (rank, in) and B (out, rank); an embedding's are kept the other way round, with the same product."""
    for name, first in weights.items():
        second = weights.get(name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B"))
        if ("lora_A" in name or "lora_embedding_A" in name) and second is not None:
            yield first.float(), second.float()


def _is_nothing(first: torch.Tensor, second: torch.Tensor) -> bool:
    most = float(first.abs().max() * second.abs().max()) * first.shape[0]
    return most == 0 or float((second @ first).abs().max()) <= UNTRAINED * most


def _check_template(config: Config, adapter: Product, where: str) -> None:
    """The template that the adapter brings is that of its training, and is told the same here."""
    switches = template_switches(config.model)
    found = digest_of_template(load_tokenizer_from(adapter.folder), switches)
    trained = adapter.about.get("template")
    if trained is None:  # an adapter of before: training took the base's
        trained = digest_of_template(load_tokenizer(config.model), switches)
    if found != trained:
        raise UserError(
            f"{where}: its chat template, with {switches or 'no switches'}, isn't the one of its training: "
            f"expected {trained}, got {found}"
        )
