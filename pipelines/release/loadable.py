"""Which servers can load an adapter as it is, told from its settings and the names of its weights."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# vLLM 0.33, vllm/config/lora.py and vllm/lora/peft_helper.py.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank may be
MODULES = {
    *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"),
    *("gate_proj", "up_proj", "down_proj", "gate_up_proj"),
}


def vllm(settings: Mapping[str, Any], weights: Iterable[str]) -> dict[str, Any]:
    """Whether vLLM loads an adapter, why not, and the `--max-lora-rank` it needs.

    `settings` are those of its `adapter_config.json`, `weights` the names in its safetensors file.
    """
    obstacles = _obstacles(settings, weights)
    rank = int(settings.get("r") or 0)
    fitting = next((allowed for allowed in RANKS if allowed >= rank), None)
    return {"loadable": not obstacles, "why": "; ".join(obstacles), "max_lora_rank": None if obstacles else fitting}


def _obstacles(settings: Mapping[str, Any], weights: Iterable[str]) -> list[str]:
    kind = str(settings.get("peft_type"))
    if kind != "LORA":
        return [f"{kind} is no LoRA"]
    rank = int(settings.get("r") or 0)
    found = [] if rank <= RANKS[-1] else [f"rank {rank} is above {RANKS[-1]}"]
    if settings.get("use_dora"):
        found.append("DoRA")
    if settings.get("modules_to_save"):
        found.append(f"modules_to_save: {', '.join(settings['modules_to_save'])}")
    if settings.get("target_parameters"):
        found.append(f"target_parameters: {', '.join(settings['target_parameters'])}")
    if settings.get("bias", "none") != "none":
        found.append(f"bias: {settings['bias']}")
    for pattern in ("rank_pattern", "alpha_pattern"):
        if settings.get(pattern):
            found.append(f"{pattern}: vLLM knows one for all modules")
    modules = {re.split(r"\.(?:lora_|base_layer)", name)[0].rpartition(".")[2] for name in weights}
    others = sorted(modules - MODULES)
    return found + ([f"adapts {', '.join(others)}"] if others else [])
