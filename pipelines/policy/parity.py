"""One model in several forms, asked the same: greedy tokens, and how likely each form finds the reference's tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan
from typing import Any

import torch

from pipelines.config.packaging import Tolerance
from pipelines.config.schema import Adapter, Compute
from pipelines.policy.chat import Decoding, tokens_of
from pipelines.policy.template import ends_of, render

NOTHING = 1e-6  # an adapter that moves no log-probability by more changes nothing


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out row as a conversation; `evaluated` is what the adapter answered when it was judged, None unknown."""

    row_id: str
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    evaluated: str | None


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one given token: its log-probability, and how far that is below the most likely token's."""

    logprob: float
    below: float


@dataclass(frozen=True)
class Asking:
    """What every form is asked: the prompts as tokens, and the limit of new ones."""

    ids: Sequence[Sequence[int]]
    max_new_tokens: int


@dataclass(frozen=True)
class Form:
    """What one form said: its greedy tokens a prompt, and the likelihoods of the reference's (None: not known)."""

    tokens: list[list[int]]
    likelihoods: list[list[Likelihood]] | None


def asking(tokenizer: Any, prompts: Sequence[Prompt], template: Mapping[str, Any], max_new_tokens: int) -> Asking:
    """The prompts as the chat template writes them."""
    messages, tools = [prompt.messages for prompt in prompts], [prompt.tools for prompt in prompts]
    return Asking(render(tokenizer, messages, tools, template, prompt=True), max_new_tokens)


@torch.inference_mode()
def greedy(model: Any, tokenizer: Any, asked: Asking) -> list[list[int]]:
    """The tokens of each answer, that of the end included; one prompt at a time, as a served model is asked."""
    ends = ends_of(model.generation_config, tokenizer)
    settings = Decoding(asked.max_new_tokens).settings() | {
        "max_new_tokens": asked.max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": ends,
    }
    return [tokens_of(model, tokenizer, [prompt], settings)[0] for prompt in asked.ids]


@torch.inference_mode()
def likelihoods(model: Any, asked: Asking, answers: Sequence[Sequence[int]]) -> list[list[Likelihood]]:
    """How likely the model finds each token of the given answers behind their prompts."""
    return [_likelihoods(model, prompt, answer) for prompt, answer in zip(asked.ids, answers, strict=True)]


def _likelihoods(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[Likelihood]:
    if not answer:
        return []
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    # From the end: a learned prompt may stand before the first token.
    logprobs = torch.log_softmax(logits[0, -len(answer) - 1 : -1].float(), dim=-1)
    found = logprobs.gather(1, ids[0, -len(answer) :, None])[:, 0]
    below = logprobs.amax(dim=-1) - found
    return [Likelihood(*pair) for pair in zip(found.tolist(), below.tolist(), strict=True)]


def said(model: Any, tokenizer: Any, asked: Asking, reference: Sequence[Sequence[int]] | None = None) -> Form:
    """What a loaded form says; without a `reference` it is the reference itself."""
    tokens = greedy(model, tokenizer, asked)
    return Form(tokens, likelihoods(model, asked, tokens if reference is None else reference))


def written(model: Any, tokenizer: Any, answers: Sequence[Sequence[int]]) -> list[str]:
    """The texts of answers, without the token that ended them."""
    ends = set(ends_of(model.generation_config, tokenizer))
    kept = [list(answer[:-1]) if answer and answer[-1] in ends else list(answer) for answer in answers]
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in kept]


def compared(reference: Form, form: Form, tolerance: float, note: str) -> dict[str, Any]:
    """One entry of `parity.json`: whether the form is the reference, with the figures.

    Answers have to be equal token by token. Where rounding decides between tokens that the form finds as likely as one
    another, within twice the tolerance, it may part from the reference.
    """
    pairs = list(zip(reference.tokens, form.tokens, strict=True))
    equal = sum(ours == theirs for ours, theirs in pairs)
    entry: dict[str, Any] = {"tokens_equal": equal, "rows": len(pairs), "max_logprob_difference": None}
    decided = equal == len(pairs)
    if form.likelihoods is not None and reference.likelihoods is not None:
        apart = difference(reference.likelihoods, form.likelihoods)
        entry["max_logprob_difference"] = apart if isfinite(apart) else None
        parted = [_parted(*pair, likely) for pair, likely in zip(pairs, form.likelihoods, strict=True)]
        decided = all(below is None or below <= 2 * tolerance for below in parted)
        decided = decided and apart <= tolerance
    return entry | {"tolerance": tolerance, "passed": decided, "note": note}


def difference(ours: Sequence[Sequence[Likelihood]], theirs: Sequence[Sequence[Likelihood]]) -> float:
    """The largest difference of a log-probability; infinite where one is no number."""
    each = [
        abs(one.logprob - other.logprob)
        for row, others in zip(ours, theirs, strict=True)
        for one, other in zip(row, others, strict=True)
    ]
    return max((inf if isnan(value) else value for value in each), default=0.0)


def _parted(ours: Sequence[int], theirs: Sequence[int], likely: Sequence[Likelihood]) -> float | None:
    """How much less likely than its own token the form finds the reference's, where they part; None if they don't."""
    at = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
    if at is None:
        # One that goes on where the other has ended has another token there, which isn't kept.
        return None if len(ours) == len(theirs) else inf
    return likely[at].below


def tolerance_of(tolerance: Tolerance, compute: Compute, adapter: Adapter) -> float:
    """That of the coarsest dtype in which the model computes."""
    dtypes = {compute.dtype}
    if adapter.quantization is not None:
        dtypes.add(adapter.quantization.bnb_4bit_compute_dtype)
    return max(float(getattr(tolerance, dtype)) for dtype in dtypes)
