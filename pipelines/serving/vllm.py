"""`vllm serve` on a base and adapters straight from the registry; every flag is of vLLM 0.32's own parser."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.config.schema import Adapter, Compute, Model
from pipelines.errors import UserError
from pipelines.policy.base import local_folder, pin
from pipelines.policy.served import BASE_FOLDER, completed

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes (vllm.config.lora.MaxLoRARanks)
SPARE = 1  # adapters more than those that answer: one that is being looked at before it takes over
# Lets adapters be loaded by request; the door in front lets no such request through.
VARIABLES = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
KEY = "VLLM_API_KEY"
CALLS = "<tool_call>"  # templates of the Hermes kind write calls of tools between these marks


def arguments(settings: Mapping[str, Any], adapters: Mapping[str, Path], flags: Sequence[str]) -> list[str]:
    """What follows `vllm serve`: the base as it was trained on, and each adapter by its name.

    `settings` are those of the first version, on whose base all of them are. Raises UserError where a rank is over
    what vLLM takes.
    """
    settings, first = completed(settings), next(iter(adapters.values()))
    model = base_of(settings)
    folder = local_folder(model)
    base = [str(folder)] if folder else [model.id, "--revision", str(model.revision)]
    modules = [{"name": name, "path": str(path), "base_model_name": model.id} for name, path in adapters.items()]
    return [
        *base,
        # As it was trained: the base's own may be newer, and may write a conversation otherwise.
        *("--tokenizer", str(first), "--chat-template", str(first / "chat_template.jinja")),
        *_template(settings["template"]),
        *("--dtype", Compute.model_validate(settings["compute"]).dtype),
        *_quantized(Adapter.model_validate(settings["adapter"])),
        # Who asks for no temperature gets what was evaluated.
        *("--generation-config", "vllm", "--override-generation-config", json.dumps({"temperature": 0.0})),
        *("--enable-lora", "--max-lora-rank", str(max_rank([rank_of(path) for path in adapters.values()]))),
        *("--max-loras", str(len(adapters) + SPARE), "--max-cpu-loras", str(len(adapters) + SPARE)),
        *("--lora-modules", *(json.dumps(module) for module in modules)),
        *_tools(first / "chat_template.jinja"),
        *flags,
    ]


def base_of(settings: Mapping[str, Any]) -> Model:
    """The pinned base, where it lies on this machine. Raises UserError where its files aren't those trained on."""
    model = Model.model_validate(completed(settings)["model"])
    if folder := os.environ.get(BASE_FOLDER):
        model = model.model_copy(update={"id": folder})
    if (found := pin(model).revision) != model.revision:
        raise UserError(f"base model {model.id}: expected revision {model.revision}, found {found}")
    return model


def rank_of(adapter: Path) -> int:
    """The largest rank of a LoRA adapter's matrices."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return max([int(settings["r"]), *(int(rank) for rank in (settings.get("rank_pattern") or {}).values())])


def max_rank(ranks: Sequence[int]) -> int:
    """The least --max-lora-rank that holds them all. Raises UserError where there is none."""
    found = next((rank for rank in RANKS if rank >= max(ranks)), None)
    if found is None:
        raise UserError(f"serve.engine: vLLM takes adapters of a rank up to {RANKS[-1]}, got {max(ranks)}")
    return found


def _template(switches: Mapping[str, Any]) -> list[str]:
    return ["--default-chat-template-kwargs", json.dumps(dict(switches))] if switches else []


def _quantized(adapter: Adapter) -> list[str]:
    return ["--quantization", "bitsandbytes"] if adapter.quantization else []


def _tools(template: Path) -> list[str]:
    found = template.is_file() and CALLS in template.read_text(encoding="utf-8")
    return ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"] if found else []
