"""A model's folder in fewer bits by llm-compressor. `python compress.py ASKED`

ASKED is a JSON file: {"model", "target", "form": awq, gptq or fp8, "seed", "max_tokens", "rows"}, the rows to look at
as lists of token ids (fp8 needs none). Every linear layer but the head is quantised: awq and gptq to 4 bits in groups
along the inputs, fp8 by channel, activations by token as they come.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM

GROUPS = (128, 64, 32, 16)  # inputs that share a scale: the most that divides every layer's
HEAD = ["lm_head"]


def main() -> None:
    """Writes the folder, in compressed-tensors' format."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.manual_seed(asked["seed"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="auto", trust_remote_code=False)
    if not torch.cuda.is_available():
        # Pinned memory is for copies to a GPU, and torch refuses it where there is none.
        IntermediatesCache.pin_memory = lambda self, batch_index, input_names=None: None
    given: dict[str, Any] = {}
    if asked["form"] != "fp8":
        rows = [ids[: asked["max_tokens"]] for ids in asked["rows"]]
        given = {
            "dataset": Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows]}),
            "num_calibration_samples": len(rows),
            "max_seq_length": asked["max_tokens"],
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=recipe(asked["form"], model), **given)
    model.save_pretrained(asked["target"], save_compressed=True)


def recipe(form: str, model: Any) -> list[Any]:
    """What is done to the model, in llm-compressor's own words."""
    if form == "fp8":
        return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=HEAD)]
    bits = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size(model)}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**bits, symmetric=form == "gptq"))
    if form == "gptq":
        return [GPTQModifier(config_groups={"weights": scheme}, ignore=HEAD)]
    return [AWQModifier(), QuantizationModifier(config_groups={"weights": scheme}, ignore=HEAD)]


def group_size(model: Any) -> int:
    """Ends the program where no size fits."""
    widths = [
        module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(tuple(HEAD))
    ]
    fitting = [size for size in GROUPS if all(width % size == 0 for width in widths)]
    if not fitting:
        sys.exit(f"no group size of {GROUPS} divides the inputs of every layer: {sorted(set(widths))}")
    return fitting[0]


if __name__ == "__main__":
    main()
