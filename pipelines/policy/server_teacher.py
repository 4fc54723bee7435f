"""The student answers, a server's teacher tells its likeliest tokens at each place: on-policy distillation by HTTP.

Agarwal et al. 2024, "On-Policy Distillation of Language Models", section 3, over the tokens that are told and the
rest of the vocabulary as one more outcome.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DistillationConfig

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy import on_policy
from pipelines.policy.learner import begin
from pipelines.policy.on_policy import Asked, OnPolicyTrainer
from pipelines.policy.row_names import ByNumber
from pipelines.policy.stored_logits import divergence
from pipelines.progress import say

LOGITS_AT_ONCE = 2**26  # of the student's, in float32
LEAST_REST = 2.0**-24  # what float32 can't tell from nothing beside 1
MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")  # the names that architectures give it


class Place(Protocol):
    """Tokens of a place, likeliest first, and their log-probabilities."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def logp(self) -> Sequence[float]: ...


class Scorer(Protocol):
    """A teacher's distributions over the last tokens of prompts, each a prompt's tokens and how many of the last."""

    def score(self, prompts: Sequence[tuple[Sequence[int], int]]) -> Sequence[Sequence[Place]]: ...

    def affords(self, prompts: int, tokens: int) -> bool: ...

    def check_context(self, tokens: int) -> None: ...


def build_trainer(
    config: Config,
    settings: DistillationConfig,
    models: tuple[Any, Scorer],
    tokenizer: Any,
    asked: Asked,
    work: Path,
) -> "ServerTrainer":
    """The trainer over `models`: the student, which gets an adapter if it has none, and the teacher elsewhere.

    Raises UserError where the server doesn't read the longest answer, or its spending limit not one step.
    """
    student, scorer = models
    told = on_policy.told_of(config, settings, tokenizer, asked)
    longest = on_policy.longest(told, asked) + settings.max_completion_length
    scorer.check_context(longest + 1)  # a server writes a token behind what it reads
    on_policy.check_enough(settings, asked)
    made = on_policy.arguments(config, settings, student, tokenizer, asked)
    trainer = ServerTrainer(**made, teacher_model=None)
    trainer.prompt_lengths, trainer.told, trainer.scorer = [asked.lengths[row.id] for row in asked.rows], told, scorer
    size = on_policy.rows_per_step(settings)
    limit = _Limit(scorer, size, longest, config)
    limit.check()
    trainer.add_callback(limit)
    trainer.row_ids = ByNumber([row.id for row in asked.rows])
    begin(config, student, trainer, work)
    return trainer


class ServerTrainer(OnPolicyTrainer):
    """The on-policy trainer without a teacher of its own: a server is asked once the student has answered."""

    scorer: Scorer

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        made: dict[str, Any] = super()._generate_and_score_completions(inputs)
        prompts = []
        for row in range(made["prompt_ids"].size(0)):
            prompt = made["prompt_ids"][row][made["prompt_mask"][row].bool()].tolist()
            answer = made["completion_ids"][row][made["completion_mask"][row].bool()].tolist()
            prompts.append(([*(prompt if self.told is None else self.told.of[tuple(prompt)]), *answer], len(answer)))
        told = self.scorer.score(prompts)
        vocabulary = self.accelerator.unwrap_model(self.model).config.get_text_config().vocab_size
        ids, logp = tensors(told, made["completion_ids"].size(1), vocabulary)
        device = made["completion_ids"].device
        return {**made, "teacher_ids": ids.to(device), "teacher_logp": logp.to(device)}

    def _compute_loss(
        self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        said = inputs["completion_mask"].bool()
        hidden = self._get_last_hidden_state(
            unwrapped_student,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            said.size(1),
        )
        parts = (hidden[said], inputs["teacher_ids"][said], inputs["teacher_logp"][said])
        loss, entropy = over_places(unwrapped_student, *parts, self.beta)
        count = said.sum()
        return loss / (count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch), entropy, count


def tensors(told: Sequence[Sequence[Place]], width: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers' places as ids (answers, width, most) and log-probabilities (answers, width, most + 1), the rest's last.

    An answer's places are its first ones. Tokens that the student hasn't are part of the rest; where a place has fewer
    than others, its first token stands again with -inf.
    """
    kept = [[_within(place, vocabulary) for place in places] for places in told]
    most = max((len(ids) for places in kept for ids, _ in places), default=1)
    ids = torch.zeros(len(kept), width, most, dtype=torch.int64)
    logp = torch.full((len(kept), width, most + 1), -torch.inf)
    for row, places in enumerate(kept):
        for at, (tokens, values) in enumerate(places):
            ids[row, at] = torch.tensor(tokens + tokens[:1] * (most - len(tokens)))
            logp[row, at, : len(values)] = torch.tensor(values)
            logp[row, at, -1] = _rest(values, vocabulary)
    return ids, logp


def _within(place: Place, vocabulary: int) -> tuple[list[int], list[float]]:
    pairs = [(token, value) for token, value in zip(place.ids, place.logp, strict=True) if token < vocabulary]
    return [token for token, _ in pairs], [value for _, value in pairs]


def _rest(values: Sequence[float], vocabulary: int) -> float:
    """The log-probability of all other tokens; -inf where there are none."""
    if len(values) == vocabulary:
        return -math.inf
    return math.log(max(1.0 - math.fsum(map(math.exp, values)), LEAST_REST))


def over_places(
    student: Any, hidden: torch.Tensor, ids: torch.Tensor, logp: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of the divergence and of the student's entropy over places, `hidden` being (tokens, width).

    The logits are made, and made again for the gradient, for as many places at once as `LOGITS_AT_ONCE` allows.
    """
    head, config = student.get_output_embeddings(), student.config.get_text_config()

    def part(states: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = shaped(head(states).float(), config)
        with torch.no_grad():
            own = logits.log_softmax(-1)
            entropy = -(own.exp() * own).sum()
        return divergence(logits, tokens, values, beta).sum(), entropy

    size = max(1, LOGITS_AT_ONCE // config.vocab_size)
    if len(hidden) <= size:
        return part(hidden, ids, logp)
    pieces = zip(hidden.split(size), ids.split(size), logp.split(size), strict=True)
    sums = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
    return torch.stack([one for one, _ in sums]).sum(), torch.stack([one for _, one in sums]).sum()


def shaped(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """The head's output as the architecture's own forward leaves it: multiplied and capped where its config says so."""
    factor = next((found for name in MULTIPLIERS if (found := getattr(config, name, None)) is not None), None)
    scaling = getattr(config, "logits_scaling", None)
    if factor is None and scaling is not None:
        factor = scaling if config.model_type == "hyperclovax" else 1 / scaling
    if factor is not None:
        logits = logits * factor
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _Limit(TrainerCallback):
    """Ends training before a step that might go over the spending limit."""

    def __init__(self, scorer: Scorer, prompts: int, tokens: int, config: Config) -> None:
        self.scorer, self.prompts, self.tokens, self.config = scorer, prompts, tokens, config

    def check(self) -> None:
        """Raises UserError where not even one step is within it."""
        if not self.scorer.affords(self.prompts, self.tokens):
            raise UserError(
                f"teacher.spending_limit: not even one step, {self.prompts} prompts of up to {self.tokens} tokens, is "
                f"within ${self.config.teacher.spending_limit:g}"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.global_step < state.max_steps and not self.scorer.affords(self.prompts, self.tokens):
            say(
                f"  stopped early: teacher.spending_limit of ${self.config.teacher.spending_limit:g} leaves no step "
                f"after {state.global_step} of {state.max_steps}"
            )
            control.should_training_stop = True
        return control
