"""Every shipped profile against its architecture as transformers implements it, without weights."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from peft import PeftModel, get_peft_model
from torch import nn

from pipelines.config.block import Block
from pipelines.config.schema import Adapter, Compute, Model
from pipelines.errors import UserError
from pipelines.policy.adapter import check_attached, peft_config

CONF = Path(__file__).parents[2] / "conf"
SCHEMAS: dict[str, type[Block]] = {"model": Model, "adapter": Adapter, "compute": Compute}
# Enough for each kind of layer: three dense before the sparse ones, five sliding before a full one.
LAYERS = 6
NOT_ADAPTED = re.compile(r"vision|router|\.gate$|\.gate\.|indexer|lm_head|embed|multi_modal_projector")


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def load(group: str, name: str, model: str = "tiny") -> Any:
    """A file of `conf/`, interpolated against a model profile and validated."""
    files = {"model": CONF / "model" / f"{model}.yaml", group: CONF / group / f"{name}.yaml"}
    composed = OmegaConf.create({key: OmegaConf.load(path) for key, path in files.items()})
    if group == "compute":  # the other part of the block
        composed.compute.update(OmegaConf.load(CONF / "strategy/ddp.yaml"))
    return SCHEMAS[group].model_validate(OmegaConf.to_container(composed, resolve=True)[group])  # type: ignore[index,call-overload]


def shorten(config: Any) -> None:
    """Cut a text or vision configuration to LAYERS layers, with the per-layer lists that go along."""
    depth = config.num_hidden_layers
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(config, key, value[:LAYERS])
    config.num_hidden_layers = LAYERS


@cache
def architecture_config(architecture: str) -> Any:
    return getattr(transformers, architecture).config_class()


def build(profile: Model) -> nn.Module:
    """The profile's architecture on the meta device: real widths, few layers, no memory."""
    config = type(architecture_config(profile.architecture))()
    parts = [getattr(config, key) for key in getattr(config, "sub_configs", {})] or [config]
    for part in parts:
        shorten(part)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, profile.architecture)(config)
    return model


def inject(profile: Model, adapter: Adapter) -> PeftModel:
    with torch.device("meta"):
        return get_peft_model(build(profile), peft_config(adapter, profile))


def adapted(model: nn.Module) -> set[str]:
    return {name.split(".lora_A")[0].replace(".base_layer", "") for name in model.state_dict() if ".lora_A" in name}


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in SCHEMAS for name in names(group)])
def test_file_is_valid_and_named_as_itself(group: str, name: str) -> None:
    assert load(group, name).name == name


def test_shipped_files_are_all_there() -> None:
    assert len(names("model")) >= 23
    assert {"lora", "qlora", "rslora", "dora", "pissa", "loftq", "prefix_tuning", "p_tuning", "ia3"} <= set(
        names("adapter")
    )
    assert {"cpu", "gpu_24gb", "gpu_48gb", "gpu_80gb"} <= set(names("compute"))


@pytest.mark.parametrize("name", names("model"))
def test_hub_models_carry_revision_and_licence_page(name: str) -> None:
    profile = load("model", name)
    assert profile.license.url
    if not profile.id.startswith("data/"):
        assert re.fullmatch(r"[0-9a-f]{40}|main", profile.revision)
    if profile.license.id.startswith("LicenseRef-"):
        assert profile.license.conditions


def test_gpu_profiles_share_one_effective_batch() -> None:
    profiles = [load("compute", name) for name in names("compute") if name.startswith("gpu")]
    assert {p.per_device_train_batch_size * p.gradient_accumulation_steps for p in profiles} == {32}


@pytest.mark.parametrize("name", names("model"))
def test_lora_reaches_every_target_and_nothing_else(name: str) -> None:
    profile = load("model", name)
    adapter = load("adapter", "lora", name)
    model = inject(profile, adapter)
    reached = adapted(model)
    counts = check_attached(model, adapter, profile)
    assert counts["adapted_modules"] == len(reached) > 0
    assert counts["adapted_parameters"] == 0
    assert not [module for module in reached if NOT_ADAPTED.search(module)]
    for target in profile.targets.target_modules:
        assert any(module.endswith(f".{target}") for module in reached)
    frozen = [key for key, p in model.named_parameters() if not p.requires_grad and "lora_" in key]
    assert not frozen


@pytest.mark.parametrize("name", names("model"))
def test_every_layer_of_the_language_model_has_an_adapter(name: str) -> None:
    profile = load("model", name)
    reached = adapted(inject(profile, load("adapter", "lora", name)))
    layers = {found.group(1) for key in reached if (found := re.search(r"layers\.(\d+)\.", key))}
    assert layers == {str(index) for index in range(LAYERS)}


@pytest.mark.parametrize("name", names("model"))
def test_train_experts_reaches_the_fused_parameters(name: str) -> None:
    profile = load("model", name)
    adapter = load("adapter", "lora", name).model_copy(update={"train_experts": True})
    if not profile.targets.target_parameters:
        assert not [key for key, p in build(profile).named_parameters() if p.ndim == 3 and "experts" in key]
        with pytest.raises(UserError, match=r"lists no targets\.target_parameters"):
            peft_config(adapter, profile)
        return
    fused = [key for key, p in build(profile).named_parameters() if p.ndim == 3 and "experts" in key]
    counts = check_attached(inject(profile, adapter), adapter, profile)
    assert counts["adapted_parameters"] == len(fused) > 0
    without = check_attached(*_plain(profile, name), profile)
    assert counts["adapted_modules"] == without["adapted_modules"]
    assert counts["trainable_parameters"] > without["trainable_parameters"]


def _plain(profile: Model, name: str) -> tuple[nn.Module, Adapter]:
    adapter = load("adapter", "lora", name)
    return inject(profile, adapter), adapter


@pytest.mark.parametrize("name", names("model"))
def test_ia3_takes_the_profile_as_it_stands(name: str) -> None:
    profile = load("model", name)
    adapter = load("adapter", "ia3", name)
    assert check_attached(inject(profile, adapter), adapter, profile)["adapted_modules"] > 0


def test_without_exclude_modules_a_vision_tower_would_be_adapted() -> None:
    profile = load("model", "gemma_3_4b")
    adapter = load("adapter", "lora", "gemma_3_4b")
    open_adapter = adapter.model_copy(update={"peft": adapter.peft | {"exclude_modules": None}})
    assert [module for module in adapted(inject(profile, open_adapter)) if "vision" in module]


def test_docs_name_every_profile() -> None:
    text = (CONF.parent / "docs" / "models.md").read_text(encoding="utf-8")
    for name in names("model"):
        profile = load("model", name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` "))
        assert profile.id in row
        assert profile.architecture in row
        assert profile.license.id.removeprefix("LicenseRef-") in row
        assert f"{profile.context_length:,}" in row
