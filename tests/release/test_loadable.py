"""What vLLM can load, told from an adapter's files."""

import pytest

from pipelines.release.loadable import vllm

LORA = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none"}
NAMES = [
    f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight"
    for layer in (0, 1)
    for module in ("self_attn.q_proj", "mlp.down_proj")
    for side in "AB"
]


@pytest.mark.parametrize(("rank", "needed"), [(1, 1), (8, 8), (9, 16), (24, 32), (200, 256), (300, 320), (512, 512)])
def test_a_lora_is_loaded_with_the_rank_that_fits(rank: int, needed: int) -> None:
    assert vllm(LORA | {"r": rank}, NAMES) == {"loadable": True, "why": "", "max_lora_rank": needed}


@pytest.mark.parametrize(
    ("changes", "names", "why"),
    [
        ({"r": 513}, NAMES, "rank 513 is above 512"),
        ({"use_dora": True}, NAMES, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, NAMES, "modules_to_save: lm_head"),
        ({"target_parameters": ["experts.gate_up_proj"]}, NAMES, "target_parameters: experts.gate_up_proj"),
        ({"bias": "all"}, NAMES, "bias: all"),
        ({"rank_pattern": {"q_proj": 4}}, NAMES, "rank_pattern: vLLM knows one for all modules"),
        ({"peft_type": "IA3"}, NAMES, "IA3 is no LoRA"),
        ({}, [*NAMES, "base_model.model.model.layers.0.mlp.router.lora_A.weight"], "adapts router"),
    ],
)
def test_what_it_can_not_load_is_told(changes: dict[str, object], names: list[str], why: str) -> None:
    assert vllm(LORA | changes, names) == {"loadable": False, "why": why, "max_lora_rank": None}
