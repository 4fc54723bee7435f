"""Greedy answers of a model's folder to prompts given as token ids. `python model_answer.py ASKED ANSWERED`

For formats that our own environment can't load. ASKED: {"model", "device", "dtype", "batch_size", "ends", "pad",
"limit", "prompts": [{"ids"}]}. ANSWERED: {"answers": [{"tokens", "seconds"}]}: the end token included, where there is
one; seconds are null where a batch was shared.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    """Answers batch by batch, the longest prompts first."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=getattr(torch, asked["dtype"]), device_map=asked["device"], trust_remote_code=False
    ).eval()
    prompts = [prompt["ids"] for prompt in asked["prompts"]]
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    answers: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), asked["batch_size"]):
        batch = order[start : start + asked["batch_size"]]
        begun = time.perf_counter()
        made = answer(model, [prompts[number] for number in batch], asked)
        seconds = time.perf_counter() - begun if asked["batch_size"] == 1 else None
        answers |= {n: {"tokens": tokens, "seconds": seconds} for n, tokens in zip(batch, made, strict=True)}
    found = [answers[number] for number in range(len(prompts))]
    Path(sys.argv[2]).write_text(json.dumps({"answers": found}), encoding="utf-8")


@torch.inference_mode()
def answer(model: Any, prompts: list[list[int]], asked: dict[str, Any]) -> list[list[int]]:
    """The tokens up to the one that ends each answer; prompts are padded on their left."""
    width = max(len(ids) for ids in prompts)
    padded = [[asked["pad"]] * (width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    made = model.generate(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=asked["limit"],
        do_sample=False,
        num_beams=1,
        eos_token_id=asked["ends"],
        pad_token_id=asked["pad"],
    )
    return [cut(row, set(asked["ends"])) for row in made[:, width:].tolist()]


def cut(tokens: list[int], ends: set[int]) -> list[int]:
    """Without the padding behind the end."""
    for count, token in enumerate(tokens, 1):
        if token in ends:
            return tokens[:count]
    return tokens


if __name__ == "__main__":
    main()
