"""The one way a conversation becomes tokens and tokens become an answer.

Training, evaluation and the registered model all go through here, so what was scored is what is served. The
package travels with every registered version, this file with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

ROWS_AT_ONCE = 512  # the tokenizer keeps kilobytes beside each row of a batch

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer: its text, how many tokens it took, and whether the model ended it itself."""

    text: str
    num_tokens: int
    finished: bool


def render(
    tokenizer: Any,
    conversations: Sequence[Messages],
    tools: Sequence[Sequence[Mapping[str, Any]] | None],
    template: Mapping[str, Any],
    prompt: bool,
) -> list[list[int]]:
    """Token ids of whole conversations through the model's own chat template.

    `template` holds the template's switches (such as `enable_thinking`); with `prompt` the text ends where the
    assistant's answer begins.
    """
    texts = [
        tokenizer.apply_chat_template(
            list(messages), tools=offered, tokenize=False, add_generation_prompt=prompt, **template
        )
        for messages, offered in zip(conversations, tools, strict=True)
    ]
    ids: list[list[int]] = []
    for start in range(0, len(texts), ROWS_AT_ONCE):
        # The template writes every special token itself.
        batch = tokenizer(texts[start : start + ROWS_AT_ONCE], add_special_tokens=False, return_attention_mask=False)
        ids += batch["input_ids"]
    return ids


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    done: Callable[[int], None] = lambda count: None,
) -> list[Generated]:
    """Greedy answers in the order of the prompts; the longest prompts go first and share batches."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    answers: dict[int, Generated] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        tokens = _batch(model, tokenizer, [prompts[i] for i in batch], max_new_tokens)
        answers.update(zip(batch, (_answer(model, tokenizer, row) for row in tokens), strict=True))
        done(len(batch))
    return [answers[i] for i in range(len(prompts))]


def _batch(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """The new tokens of one left-padded batch."""
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
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


def ends_of(settings: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a turn: those of the generation settings, and the tokenizer's own."""
    listed = settings.eos_token_id
    listed = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return sorted({*listed, tokenizer.eos_token_id} - {None})
