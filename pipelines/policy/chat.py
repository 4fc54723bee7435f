"""The one way tokens become an answer.

Evaluation and the registered model both go through here, so what was scored is what is served. The package
travels with every registered version, this file with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.policy.template import ends_of


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer: its text, how many tokens it took, and whether the model ended it itself."""

    text: str
    num_tokens: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are made: greedily, or, with a temperature, as samples of a seed."""

    max_new_tokens: int
    temperature: float | None = None
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """The arguments of transformers' `generate`; nothing is cut off the distribution that is sampled."""
        if self.temperature is None:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": 1.0, "top_k": 0}


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int,
    done: Callable[[int], None] = lambda count: None,
) -> list[Generated]:
    """Answers in the order of the prompts; the longest prompts go first and share batches."""
    if decoding.temperature is not None:
        torch.manual_seed(decoding.seed)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    answers: dict[int, Generated] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        tokens = _batch(model, tokenizer, [prompts[i] for i in batch], decoding)
        answers.update(zip(batch, (_answer(model, tokenizer, row) for row in tokens), strict=True))
        done(len(batch))
    return [answers[i] for i in range(len(prompts))]


def _batch(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[list[int]]:
    """The new tokens of one left-padded batch."""
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=decoding.max_new_tokens,
        **decoding.settings(),
        pad_token_id=pad,
        eos_token_id=ends_of(model.generation_config, tokenizer),
    )
    return list(made[:, width:].tolist())


def _answer(model: Any, tokenizer: Any, tokens: list[int]) -> Generated:
    ends = set(ends_of(model.generation_config, tokenizer))
    stop = next((i for i, token in enumerate(tokens) if token in ends), None)
    kept = tokens if stop is None else tokens[:stop]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Generated(text, len(kept) + (stop is not None), stop is not None)
