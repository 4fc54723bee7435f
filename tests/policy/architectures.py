"""Toy mixtures of experts of four families, as transformers builds them, with what a profile says of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FEW: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


def qwen3_moe(**more: Any) -> Any:
    given = SIZES | FEW | {"num_hidden_layers": 2, "head_dim": 32, "num_experts": 4} | more
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**given))


def gpt_oss(**more: Any) -> Any:
    given = SIZES | {"num_experts_per_tok": 2, "num_hidden_layers": 2, "head_dim": 32, "num_local_experts": 4}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return GptOssForCausalLM(GptOssConfig(**(given | {"sliding_window": 16, "rope_parameters": rope} | more)))


def deepseek_v3(**more: Any) -> Any:
    """A dense layer, then two of experts with a shared one; multi-head latent attention."""
    latent = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32}
    experts = {"first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1}
    given = SIZES | FEW | latent | experts | {"num_hidden_layers": 3, "num_key_value_heads": 2}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**(given | more)))


def llama4(**more: Any) -> Any:
    """Layers of experts and dense ones in turn."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}
    given = SIZES | experts | {"num_hidden_layers": 4, "head_dim": 32, "intermediate_size_mlp": 64}
    return Llama4ForCausalLM(Llama4TextConfig(**(given | {"attention_chunk_size": 32} | more)))


@dataclass(frozen=True)
class Family:
    """How to build it, the profile of conf/model/ that has its targets, and which of its layers have experts."""

    build: Callable[..., Any]
    profile: str
    sparse_layers: tuple[int, ...]

    def made(self, **more: Any) -> Any:
        torch.manual_seed(0)
        return self.build(**more)


FAMILIES = {
    "qwen3_moe": Family(qwen3_moe, "qwen3_30b_a3b", (0, 1)),
    "gpt_oss": Family(gpt_oss, "gpt_oss_20b", (0, 1)),
    "deepseek_v3": Family(deepseek_v3, "kimi_k2", (1, 2)),
    "llama4": Family(llama4, "llama_4_scout", (1, 3)),
}
