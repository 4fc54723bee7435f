"""What is merged into which weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines import product
from pipelines.config.compose import compose
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.exporting import merging
from pipelines.policy.base import load_base, load_tokenizer, pin
from pipelines.policy.served import load_served

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


def composed(model: Path, adapter: str) -> Config:
    config = compose([f"model.id={model}", f"adapter={adapter}"]).config
    return config.model_copy(update={"model": pin(config.model)})


def settings_of(config: Config) -> dict[str, Any]:
    blocks = {name: getattr(config, name).model_dump() for name in ("model", "adapter", "compute")}
    return {**blocks, "template": {}, "max_new_tokens": 8}


def adapter_of(config: Config, folder: Path) -> Path:
    """A LoRA far from its start, on the base as the configuration loads it."""
    base = load_base(config.model, config.adapter, config.compute)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    load_tokenizer(config.model).save_pretrained(folder)
    return product.publish(folder, folder.with_name("adapter"), "adapter", {"run_id": "none"}, {}).folder


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=PROMPT).logits
    return found


def test_an_adapter_of_a_4_bit_base_is_merged_into_what_these_bits_mean(small_model: Path, tmp_path: Path) -> None:
    config = composed(small_model, "qlora")
    adapter, settings = adapter_of(config, tmp_path / "made"), settings_of(config)
    exact = {**settings, "compute": {**settings["compute"], "dtype": "float32"}}
    trained = logits(load_served(exact, adapter).model)
    merged = merging.merged(settings, adapter)
    merging.write(merged, load_tokenizer(config.model), "float32", tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    published = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    naive = PeftModel.from_pretrained(published, str(adapter)).merge_and_unload()
    spread = float(trained.std())
    # bitsandbytes multiplies in its own compute type, so the two are close and not equal.
    near, far = float((logits(plain) - trained).abs().max()), float((logits(naive) - trained).abs().max())
    assert near < 0.02 * spread
    assert far > 5 * near
    stored = json.loads((tmp_path / "merged/config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in stored
    assert (tmp_path / "merged/chat_template.jinja").is_file()


def test_a_plain_adapter_merged_in_float32_answers_as_before(small_model: Path, tmp_path: Path) -> None:
    config = composed(small_model, "lora")
    adapter, settings = adapter_of(config, tmp_path / "made"), settings_of(config)
    trained = logits(load_served(settings, adapter).model)
    torch.testing.assert_close(logits(merging.merged(settings, adapter)), trained, atol=1e-4, rtol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    torch.testing.assert_close(logits(merging.bare(settings, adapter)), logits(base))
    assert float((logits(base) - trained).abs().max()) > 0.1
    assert merging.stored_dtype(config.model) == json.loads((small_model / "config.json").read_text())["dtype"]


def test_prompts_of_virtual_tokens_are_no_weights(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prefix_tuning"):
        merging.merged(settings_of(composed(small_model, "prefix_tuning")), tmp_path)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_llama_cpp_is_given_plain_lora_alone(said: dict[str, Any], what: str, tmp_path: Path) -> None:
    plain = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "use_rslora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**plain, **said}), encoding="utf-8")
    with pytest.raises(UserError, match=f"plain LoRA, got {what}"):
        merging.scaled_config(tmp_path)


def test_a_rank_stabilised_adapter_keeps_its_scale(tmp_path: Path) -> None:
    said = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    found = merging.scaled_config(tmp_path)
    assert found["lora_alpha"] / found["r"] == 32 / 16**0.5
    assert not found["use_rslora"]
