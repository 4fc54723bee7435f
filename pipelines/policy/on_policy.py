"""The student answers, the teacher says how it would have gone on: TRL's DistillationTrainer over rows.

Agarwal et al. 2024, "On-Policy Distillation of Language Models", section 3. A prompted teacher is told more than the
student: Snell et al. 2022, "Learning by Distilling Context", section 3.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from trl import DistillationConfig, DistillationTrainer

from pipelines.config.schema import Config
from pipelines.dataset.row import Message, Row
from pipelines.errors import UserError
from pipelines.policy.base import template_switches
from pipelines.policy.fit import trainer_settings
from pipelines.policy.geometry import rows_of_step
from pipelines.policy.learner import begin, check_reads_weights, peft_of
from pipelines.policy.order import like_length
from pipelines.policy.packing import PROMPT_METHODS
from pipelines.policy.row_names import ByNumber
from pipelines.policy.template import render
from pipelines.policy.vocabulary import check_same


@dataclass(frozen=True)
class Asked:
    """What the student is asked: rows, and the tokens of each one's prompt by its id."""

    rows: Sequence[Row]
    lengths: Mapping[str, int]


def settings_of(config: Config, work: Path) -> DistillationConfig:
    """`trl.DistillationConfig` from `distill.trainer`. Raises UserError where it refuses a value."""
    check_reads_weights(config, config.distill.method)
    settings: DistillationConfig = trainer_settings(DistillationConfig, "distill.trainer", config, work)
    settings.chat_template_kwargs = dict(template_switches(config.model))
    return settings


def build_trainer(
    config: Config, settings: DistillationConfig, models: tuple[Any, Any], tokenizer: Any, asked: Asked, work: Path
) -> "OnPolicyTrainer":
    """The trainer over `models`: the student, which gets an adapter if it has none, and the loaded teacher."""
    student, teacher = models
    check_same(student, tokenizer, teacher, settings.chat_template_kwargs, config.distill.method)
    check_enough(settings, asked)
    told = told_of(config, settings, tokenizer, asked)
    check_context(teacher.model, longest(told, asked) + settings.max_completion_length)
    trainer = OnPolicyTrainer(
        **arguments(config, settings, student, tokenizer, asked), teacher_model=plain(teacher.model)
    )
    trainer.prompt_lengths, trainer.told = [asked.lengths[row.id] for row in asked.rows], told
    trainer.row_ids = ByNumber([row.id for row in asked.rows])
    begin(config, student, trainer, work)
    return trainer


def arguments(
    config: Config, settings: DistillationConfig, student: Any, tokenizer: Any, asked: Asked
) -> dict[str, Any]:
    """What a trainer is made from, whoever the teacher is."""
    return {
        "model": student,
        "args": settings,
        "train_dataset": Dataset.from_dict(
            {"prompt": [row.prompt for row in asked.rows], "row": list(range(len(asked.rows)))}
        ),
        "processing_class": tokenizer,
        "peft_config": peft_of(config, student),
    }


def told_of(config: Config, settings: DistillationConfig, tokenizer: Any, asked: Asked) -> "Told | None":
    """The teacher's own prompts, where it is told more than the student."""
    if config.distill.prompt is None:
        return None
    return Told(tokenizer, settings.chat_template_kwargs, asked.rows, config.distill.prompt)


def longest(told: "Told | None", asked: Asked) -> int:
    """Tokens of the longest prompt that the teacher reads."""
    return max(asked.lengths[row.id] for row in asked.rows) if told is None else told.longest


def rows_per_step(settings: Any) -> int:
    """Rows of an optimizer step, of all processes."""
    return rows_of_step(settings)


def check_enough(settings: Any, asked: Asked) -> None:
    """Raises UserError where there are fewer rows than a step asks."""
    if len(asked.rows) < (size := rows_per_step(settings)):
        raise UserError(
            f"distill.trainer.per_device_train_batch_size: a step asks {size} rows, there are {len(asked.rows)}"
        )


def plain(teacher: Any) -> Any:
    """The teacher as the divergence reads it, backbone and head: an adapter in float32 becomes part of its weights.

    Raises UserError for an adapter that stands beside both.
    """
    if not isinstance(teacher, PeftModel):
        return teacher
    settings = teacher.peft_config[teacher.active_adapter]
    if settings.is_prompt_learning:
        methods = " and ".join(PROMPT_METHODS)
        raise UserError(f"teacher.at: adapters by {methods} can't teach token by token; use distillation=sequence")
    if getattr(teacher.base_model.model, "is_quantized", False) or teacher.dtype != torch.float32:
        if hasattr(teacher.get_output_embeddings(), "base_layer"):
            raise UserError("teacher.at: its adapter is on lm_head, which can't be read in fewer than 32 bits")
        return teacher
    return teacher.merge_and_unload()


def check_context(teacher: Any, tokens: int) -> None:
    """Raises UserError where prompt and answer don't fit into what the teacher can read."""
    limit = getattr(teacher.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise UserError(
            f"teacher.at: prompt and answer come to {tokens} tokens, the teacher reads {limit}; lower "
            "distill.trainer.max_completion_length, or drop long rows with prepare.max_length"
        )


class OnPolicyTrainer(DistillationTrainer):
    """TRL's trainer, with prompts of like length together and, where there is one, a prompt of the teacher's own.

    `told` is None where the teacher reads what the student read.
    """

    prompt_lengths: list[int]
    told: "Told | None"
    row_ids: ByNumber

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        args = self.args
        seed = args.seed if args.shuffle_dataset else None
        return LikeLength(self.prompt_lengths, rows_per_step(args), args.gradient_accumulation_steps, seed)

    def _get_last_hidden_state(
        self, unwrapped_model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, **further: Any
    ) -> Any:
        teacher = self.teacher_model and self.accelerator.unwrap_model(self.teacher_model)
        if self.told is not None and unwrapped_model is teacher:
            input_ids, attention_mask = self.told.exchanged(input_ids, attention_mask, logits_to_keep)
        return super()._get_last_hidden_state(unwrapped_model, input_ids, attention_mask, logits_to_keep, **further)


class LikeLength(Sampler[int]):
    """Rows in batches of like length, in another order each epoch; every batch comes once for each micro-batch.

    TRL's own sampler goes on from where its last epoch left it, which a restart doesn't know. Rows that don't fill a
    batch wait for another epoch.
    """

    def __init__(self, lengths: Sequence[int], size: int, repeats: int, seed: int | None) -> None:
        """`seed` None leaves the rows in their order."""
        self.lengths, self.size, self.repeats, self.seed = lengths, size, repeats, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch, a resumed one's too."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.lengths)))
        if self.seed is not None:
            order = like_length(self.lengths, self.size, self.seed + self.epoch)
        for start in range(0, len(order) - self.size + 1, self.size):
            for _ in range(self.repeats):
                yield from order[start : start + self.size]

    def __len__(self) -> int:
        return len(self.lengths) // self.size * self.size * self.repeats


class Told:
    """Prompts of the rows as the student and as the teacher reads them."""

    def __init__(self, tokenizer: Any, template: Mapping[str, Any], rows: Sequence[Row], prompt: str) -> None:
        none = [None] * len(rows)
        plain = render(tokenizer, [row.prompt for row in rows], none, template, prompt=True)
        told = render(tokenizer, [with_system(row.prompt, prompt) for row in rows], none, template, prompt=True)
        self.of = {tuple(ids): more for ids, more in zip(plain, told, strict=True)}
        self.longest, self.padding = max(map(len, told)), tokenizer.pad_token_id

    def exchanged(self, ids: torch.Tensor, mask: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and mask, both (batch, prompt + kept), with the teacher's prompts before the same last `kept`."""
        begin = ids.size(1) - kept
        prompts = [
            self.of[tuple(row[seen.bool()].tolist())]
            for row, seen in zip(ids[:, :begin].cpu(), mask[:, :begin].cpu(), strict=True)
        ]
        width = max(map(len, prompts))
        padded = torch.tensor([[self.padding] * (width - len(found)) + found for found in prompts])
        seen = torch.tensor([[0] * (width - len(found)) + [1] * len(found) for found in prompts])
        return (
            torch.cat([padded.to(ids), ids[:, begin:]], dim=1),
            torch.cat([seen.to(mask), mask[:, begin:]], dim=1),
        )


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """The conversation with `text` in its system message, before what that said."""
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{text}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
