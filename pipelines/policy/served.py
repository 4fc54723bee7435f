"""Base + adapter as a registered version describes them: what a server loads, and what is evaluated of a version."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.modelling import Adapter, Compute, Model
from pipelines.errors import UserError
from pipelines.policy import base as base_models
from pipelines.policy.template import digest_of_template
from pipelines.product import MANIFEST, Product, digest_of, file_hash
from pipelines.product import load as load_product

BASE_FOLDER = "TUNESMITH_BASE_MODEL"  # where the base's files lie on this machine, if not where they were
LATER: dict[str, dict[str, Any]] = {
    "model": {"remote_code": None},
    "adapter": {"train_shared_experts": False, "train_router": False},
    "compute": {
        "num_processes": 1,
        "num_nodes": 1,
        "strategy": "ddp",
        "deepspeed": None,
        "fsdp": None,
        "rendezvous": {"endpoint": None, "node_rank": None, "timeout_s": 1800},
    },
}
TOKENIZER = (".json", ".model", ".txt")  # an adapter's files that are its tokenizer's, but for these:
NOT_TOKENIZER = ("adapter_", "generation_", "training")
LATER_TARGETS: dict[str, Any] = {"shared_expert_parameters": [], "router_parameters": []}


@dataclass(frozen=True)
class Served:
    """A loaded model and how it is asked: the template's switches and the limit of new tokens."""

    model: Any
    tokenizer: Any
    template: Mapping[str, Any]
    max_new_tokens: int
    compute: Compute


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A version's settings with what versions of before lack: keys that came later, as they were trained."""
    found = {**settings, **{name: {**LATER[name], **settings[name]} for name in LATER}}
    found["model"] = {**found["model"], "targets": {**LATER_TARGETS, **found["model"]["targets"]}}
    if quantization := found["adapter"]["quantization"]:
        found["adapter"] = {**found["adapter"], "quantization": {"experts": False, **quantization}}
    return found


def load_served(settings: Mapping[str, Any], adapter: Path) -> Served:
    """Loads the pinned base and the adapter of a version's settings. Raises UserError where files have changed."""
    import torch

    settings = completed(settings)
    model = Model.model_validate(settings["model"])
    compute = Compute.model_validate(settings["compute"])
    if folder := os.environ.get(BASE_FOLDER):
        model = model.model_copy(update={"id": folder})
    if compute.device == "cuda" and not torch.cuda.is_available():
        compute = compute.model_copy(update={"device": "cpu"})
    product = load_product(adapter)
    tokenizer = base_models.load_tokenizer_from(product.folder, model)
    _check(settings, product, tokenizer)
    _check_base(model, settings.get("base_files"))
    base = base_models.load_base(model, Adapter.model_validate(settings["adapter"]), compute)
    return Served(
        model=base_models.load_adapter(base, product.folder).eval(),
        tokenizer=tokenizer,
        template=settings["template"],
        max_new_tokens=settings["max_new_tokens"],
        compute=compute,
    )


def digests(adapter: Product, tokenizer: Any, template: Mapping[str, Any]) -> dict[str, str]:
    """What a version says of its adapter: the digests of the product, of its tokenizer and of its chat template."""
    return {
        "adapter": adapter.digest,
        "tokenizer": tokenizer_digest(adapter.folder),
        "template": digest_of_template(tokenizer, template),
    }


def tokenizer_digest(adapter: Path) -> str:
    """sha256 over the files of an adapter's tokenizer; the chat template has a digest of its own."""
    names = (path.name for path in adapter.iterdir() if path.suffix in TOKENIZER and path.name != MANIFEST)
    return digest_of({name: file_hash(adapter / name) for name in names if not name.startswith(NOT_TOKENIZER)})


def _check(settings: Mapping[str, Any], adapter: Product, tokenizer: Any) -> None:
    """Raises UserError naming what isn't the version's; versions of before say nothing of it."""
    expected = settings.get("digests", {})
    found = digests(adapter, tokenizer, settings["template"])
    for part in ("tokenizer", "template", "adapter"):
        if part in expected and expected[part] != found[part]:
            raise UserError(
                f"{adapter.folder}: its {part} isn't the one of {settings['name']}: "
                f"expected digest {expected[part]}, got {found[part]}"
            )


def _check_base(model: Model, expected: Mapping[str, str] | None) -> None:
    if expected is not None:
        base_models.check_files(model, expected)
    elif (found := base_models.pin(model).revision) != model.revision:
        raise UserError(f"base model {model.id}: expected revision {model.revision}, found {found}")
