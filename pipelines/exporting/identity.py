"""Whether a file answers token by token as the adapter does, and how close it was where it doesn't."""

from collections.abc import Sequence
from typing import Any

import torch

SHOWN = 5


@torch.inference_mode()
def greedy(model: Any, prompts: Sequence[Sequence[int]], ends: Sequence[int], pad: int, limit: int) -> list[list[int]]:
    """The likeliest tokens to each prompt, one prompt at a time; the end token included, where there is one."""
    answers = []
    for ids in prompts:
        given = torch.tensor([list(ids)], device=model.device)
        made = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(ends),
            pad_token_id=pad,
        )
        answers.append(made[0, len(ids) :].tolist())
    return answers


def compared(
    model: Any, prompts: Sequence[Sequence[int]], expected: Sequence[list[int]], found: Sequence[list[int]]
) -> dict[str, Any]:
    """How many answers are the same tokens, and of the first that aren't by how much the adapter preferred its own.

    `margin` is the difference of the adapter's logits for its token and the file's, `top2` that of its two likeliest.
    """
    unequal = [number for number, tokens in enumerate(found) if tokens != expected[number]]
    first: list[dict[str, Any]] = []
    for number in unequal[:SHOWN]:
        ours, theirs = expected[number], found[number]
        at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if at is None:
            first.append({"row": number, "token": min(len(ours), len(theirs)), "margin": None, "top2": None})
            continue
        logits = _next(model, [*prompts[number], *ours[:at]])
        top = logits.topk(2).values
        margin, between = float(logits[ours[at]] - logits[theirs[at]]), float(top[0] - top[1])
        first.append({"row": number, "token": at, "margin": margin, "top2": between})
    return {"rows": len(prompts), "equal": len(prompts) - len(unequal), "first": first}


@torch.inference_mode()
def _next(model: Any, ids: list[int]) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float()
    return found
