"""The one way tokens become an answer.

Evaluation and the registered model both go through here, so what was scored is what is served. The package
travels with every registered version, this file with it.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from pipelines.policy.prefill import only_attends, prefilled, spread
from pipelines.policy.template import ends_of

LEAVING = 0.25  # the share of a batch that has to have ended before the others go on without it
GROWING = "DynamicLayer"  # a cache's layer that holds every token
BY_ROW = (GROWING, "DynamicSlidingWindowLayer", "_Roomy")  # layers that rows can be taken from
ROOM = 128  # tokens that a layer gets room for at once
# Settings that count from where `generate` was called: a batch that has them is never left.
FROM_THE_CALL = (
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "max_time",
    "min_new_tokens",
)


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer: its text, how many tokens it took, and whether the model ended it itself.

    `logprob` is the sum of the log-probabilities of those tokens, that of the end included, under the model's raw
    logits: neither a temperature nor a penalty of the checkpoint's settings is in it.
    """

    text: str
    num_tokens: int
    finished: bool
    logprob: float


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are made: greedily, or, with a temperature, as samples of a seed.

    An answer ends before the first of the `stop` strings in it, and counts as finished; its tokens are those up
    to the one that completes the string.
    """

    max_new_tokens: int
    temperature: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """The arguments of transformers' `generate`; nothing is cut off the distribution that is sampled."""
        if self.temperature is None:
            return {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "num_beams": 1, "temperature": self.temperature, "top_p": 1.0, "top_k": 0}


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
    stop = _Stop(tokenizer, decoding.stop)
    ends = sorted({*ends_of(model.generation_config, tokenizer), *stop.tokens})
    # Virtual tokens come before the padding, and a model hears of the gap: such batches have none.
    batches = _batches([len(prompt) for prompt in prompts], batch_size, even=learns_a_prompt(model))
    answers: dict[int, Generated] = {}
    for batch in batches:
        given = [prompts[i] for i in batch]
        made = _batch(model, given, decoding.settings() | _within(decoding.max_new_tokens, ends, tokenizer), stop)
        answers.update(zip(batch, (_answer(tokenizer, row, stop, ends) for row in made), strict=True))
        done(len(batch))
    return [answers[i] for i in range(len(prompts))]


def _batches(lengths: Sequence[int], size: int, even: bool) -> list[list[int]]:
    """The prompts' numbers in batches, the longest first; `even` ones hold prompts of one length alone."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or len(batches[-1]) == size or (even and lengths[batches[-1][0]] != lengths[i]):
            batches.append([])
        batches[-1].append(i)
    return batches


Made = list[tuple[int, float]]  # an answer's tokens, up to the one that ended it, and their log-probabilities


class _Stop:
    """Where stop strings end an answer. One that is a special token never gets into a text: it is an end token."""

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)) if strings else {}
        self.tokenizer = tokenizer
        self.tokens = [special[string] for string in strings if string in special]
        self.strings = [string for string in strings if string and string not in special]
        self._closes: dict[int, bool] = {}

    def cut(self, text: str) -> str | None:
        """The text before the first stop string, None where there is none."""
        found = [at for at in map(text.find, self.strings) if at >= 0]
        return text[: min(found)] if found else None

    def length(self, tokens: Sequence[int]) -> int | None:
        """How many of the tokens complete a stop string, None where they don't."""
        if not self.strings or self._cut(tokens) is None:
            return None
        return bisect_left(range(len(tokens)), True, key=lambda count: self._cut(tokens[:count]) is not None)

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether the tokens hold a stop string; looked for only where the last one may complete it."""
        return self._may_complete(tokens[-1]) and self._cut(tokens) is not None

    def _may_complete(self, token: int) -> bool:
        if token not in self._closes:
            text = self.tokenizer.decode([token])
            # A token with part of a character decodes to U+FFFD by itself.
            self._closes[token] = "\ufffd" in text or any(string[-1] in text for string in self.strings)
        return self._closes[token]

    def _cut(self, tokens: Sequence[int]) -> str | None:
        return self.cut(self.tokenizer.decode(tokens, skip_special_tokens=True))


class _Watch:
    """Looks on while a batch is generated: log-probabilities, which rows have ended, when it is time to leave."""

    def __init__(self, stop: _Stop, ends: torch.Tensor, rows: int, may_leave: bool) -> None:
        self.stop, self.ends, self.may_leave = stop, ends, may_leave
        self.texts: list[list[int]] = [[] for _ in range(rows)]  # the rows' tokens, where strings may end them
        self.logits: Any = None
        self.cache: Any = None
        self.begin()

    def begin(self) -> None:
        """Another call of `generate`, with as many rows as there are `texts`."""
        rows, device = len(self.texts), self.ends.device
        self.logprobs: list[torch.Tensor] = []
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)

    def see(self, module: Any, given: Any, output: Any) -> None:
        """The model's forward hook: what a logits processor is shown may already be penalised."""
        cache = getattr(output, "past_key_values", None)
        if cache is not self.cache:
            _give_room(cache)
        self.logits, self.cache = output.logits[:, -1], cache

    def step(self, tokens: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """The stopping criterion: which rows have ended; all of them, where the batch is to be left."""
        last, logits = tokens[:, -1], self.logits.float()
        self.logprobs.append(logits.gather(1, last[:, None])[:, 0] - logits.logsumexp(-1))
        self.lengths += ~self.ended
        self.ended |= torch.isin(last, self.ends)
        if self.stop.strings:
            self._stop(last.tolist())
        leaving = self.may_leave and self.ended.float().mean() >= LEAVING and _rows_can_leave(self.cache)
        return torch.ones_like(self.ended) if leaving else self.ended

    def _stop(self, last: list[int]) -> None:
        for row, (ended, token) in enumerate(zip(self.ended.tolist(), last, strict=True)):
            if not ended:
                self.texts[row].append(token)
                if self.stop.reached(self.texts[row]):
                    self.ended[row] = True

    def leave(self, left: torch.Tensor) -> None:
        """Only these rows go on."""
        self.texts = [self.texts[row] for row in left.tolist()]
        self.cache.batch_select_indices(left)

    def made(self, tokens: torch.Tensor) -> list[Made]:
        """Each row's new tokens with their log-probabilities, up to where it ended."""
        each = torch.stack(self.logprobs, dim=1).tolist()
        new = tokens[:, -len(self.logprobs) :].tolist()
        counts = self.lengths.tolist()
        return [
            list(zip(ids[:count], found[:count], strict=True))
            for ids, found, count in zip(new, each, counts, strict=True)
        ]


def _rows_can_leave(cache: Any) -> bool:
    layers = getattr(cache, "layers", None) or [None]
    return all(type(layer).__name__ in BY_ROW for layer in layers)


def _give_room(cache: Any) -> None:
    """Lets a cache's layers take new tokens without copying all that they hold."""
    if not getattr(cache, "offloading", False):
        for layer in getattr(cache, "layers", []):
            kind: Any = type(layer)
            if kind.__name__ == GROWING:
                layer.__class__ = _roomy(kind)


@cache
def _roomy(kind: Any) -> type:
    """A layer like `kind`, whose tensors are the beginnings of larger ones."""

    class _Roomy(kind):
        keys: Any
        values: Any

        def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self.is_initialized:
                return super().update(keys, values, *args, **kwargs)
            self.keys = self._longer("_key_room", self.keys, keys)
            self.values = self._longer("_value_room", self.values, values)
            return self.keys, self.values

        def _longer(self, name: str, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            before, after = held.shape[-2], held.shape[-2] + new.shape[-2]
            room: Any = getattr(self, name, held)
            # Whoever took rows out has left a tensor that isn't the beginning of the room.
            if room.data_ptr() != held.data_ptr() or room.shape[:-2] != held.shape[:-2] or room.shape[-2] < after:
                room = held.new_empty((*held.shape[:-2], after + ROOM, held.shape[-1]))
                room[..., :before, :] = held
                setattr(self, name, room)
            room[..., before:after, :] = new
            return room[..., :after, :]

    return _Roomy


def tokens_of(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any]
) -> list[list[int]]:
    """The tokens of one batch of answers, each up to its end.

    `settings` are those of transformers' `generate`, with `max_new_tokens`, `pad_token_id` and a list `eos_token_id`.
    """
    return [[token for token, _ in made] for made in _batch(model, prompts, settings, _Stop(tokenizer, ()))]


def _within(max_new_tokens: int, ends: list[int], tokenizer: Any) -> dict[str, Any]:
    return {"max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": ends}


def _batch(model: Any, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any], stop: _Stop) -> list[Made]:
    """What one left-padded batch makes; rows that have ended leave it, so that the others go on faster."""
    limit, pad, ends = (settings[name] for name in ("max_new_tokens", "pad_token_id", "eos_token_id"))
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    watch = _Watch(stop, torch.tensor(ends, device=model.device), len(prompts), _may_leave(model))
    made: list[Made] = [[] for _ in prompts]
    rows = torch.arange(len(prompts), device=model.device)
    repeats = len(prompts) > len({tuple(prompt) for prompt in prompts}) and _may_leave(model) and only_attends(model)
    before = {"past_key_values": spread(*prefilled(model, ids[:, :-1], mask[:, :-1]))} if repeats else {}
    hook = inner(model).register_forward_hook(watch.see)
    try:
        while True:
            watch.begin()
            before = before if watch.cache is None else {"past_key_values": watch.cache}
            ids = model.generate(
                input_ids=ids,
                attention_mask=mask,
                stopping_criteria=[watch.step],
                **before,
                **{**settings, "max_new_tokens": width + limit - ids.shape[1]},
            )
            for row, new in zip(rows.tolist(), watch.made(ids), strict=True):
                made[row] += new
            left = (~watch.ended).nonzero()[:, 0]
            if ids.shape[1] == width + limit or not len(left):
                break
            mask = torch.nn.functional.pad(mask, (0, len(watch.logprobs)), value=1)
            rows, ids, mask = rows[left], ids[left], mask[left]
            watch.leave(left)
    finally:
        hook.remove()
    return made


def inner(model: Any) -> Any:
    """The model whose forward makes the logits: under an adapter, the base."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def learns_a_prompt(model: Any) -> bool:
    """Whether the adapter puts virtual tokens before the prompt."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def _may_leave(model: Any) -> bool:
    """Whether a batch can be taken up again after rows have left it."""
    settings = model.generation_config
    # `rope_deltas` hold each row's offset between calls, and can't be thinned out.
    offsets = any(hasattr(module, "rope_deltas") for module in model.modules())
    counted = any(getattr(settings, name, None) is not None for name in FROM_THE_CALL)
    return not (offsets or counted or learns_a_prompt(model))


def _answer(tokenizer: Any, made: Made, stop: _Stop, ends: list[int]) -> Generated:
    tokens = [token for token, _ in made]
    ended = bool(tokens) and tokens[-1] in ends
    kept = tokens[:-1] if ended else tokens
    length = stop.length(kept)
    text = tokenizer.decode(kept[:length], skip_special_tokens=True)
    if length is not None:
        text = stop.cut(text) or ""
    used = made[: len(tokens) if length is None else length]
    return Generated(text, len(used), ended or length is not None, sum(logprob for _, logprob in used))
