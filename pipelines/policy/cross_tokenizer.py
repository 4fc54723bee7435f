"""A teacher with a tokenizer of its own: TRL's experimental GOLDTrainer over rows.

Boizard et al. 2024, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss", section 3; texts
that the two cut into tokens otherwise are laid side by side by their bytes.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from torch.utils.data import Sampler
from trl.experimental.gold import GOLDConfig, GOLDTrainer
from trl.experimental.utils import is_byte_level_tokenizer

from pipelines.config.schema import Config
from pipelines.dataset.row import Message, Row
from pipelines.errors import UserError
from pipelines.policy.base import end_tokens, template_switches
from pipelines.policy.fit import trainer_settings
from pipelines.policy.learner import begin, peft_of
from pipelines.policy.mask import IGNORED
from pipelines.policy.on_policy import Asked, LikeLength, check_context, check_enough, rows_per_step
from pipelines.policy.template import render, texts
from pipelines.policy.vocabulary import vocabulary_difference
from pipelines.progress import say

__all__ = ["Asked", "build_trainer", "rows_per_step", "settings_of"]


def settings_of(config: Config, work: Path) -> GOLDConfig:
    """`GOLDConfig` from `distill.trainer`. Raises UserError where it refuses a value."""
    settings: GOLDConfig = trainer_settings(GOLDConfig, "distill.trainer", config, work)
    if not settings.use_uld_loss:
        raise UserError("distill.trainer.use_uld_loss: false compares token by token; use distillation=on_policy")
    return settings


def build_trainer(
    config: Config, settings: GOLDConfig, models: tuple[Any, Any], tokenizer: Any, asked: Asked, work: Path
) -> "CrossTrainer":
    """The trainer over `models`: the student, which gets an adapter if it has none, and the loaded teacher."""
    student, teacher = models
    _check(settings, tokenizer, teacher.tokenizer, asked)
    template = template_switches(config.model)
    told = Prompts(tokenizer, template, teacher, asked.rows, settings.max_length)
    check_context(teacher.model, told.longest + settings.max_completion_length)
    columns = {
        "prompt": [row.prompt for row in asked.rows],
        # What the student writes itself needs none.
        "completion": [row.completion or [{"role": "assistant", "content": ""}] for row in asked.rows],
        "chat_template_kwargs": [template] * len(asked.rows),
    }
    if not template:  # a column of empty mappings has no type
        del columns["chat_template_kwargs"]
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        teacher.tokenizer.save_pretrained(folder)
        settings.teacher_tokenizer_name_or_path = folder
        trainer = CrossTrainer(
            model=student,
            teacher_model=teacher.model,
            args=settings,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer,
            peft_config=peft_of(config, student),
        )
    trainer.told, trainer.ends = told, frozenset(end_tokens(config.model, tokenizer))
    trainer.prompt_lengths = [asked.lengths[row.id] for row in asked.rows]
    begin(config, student, trainer, work)
    return trainer


def _check(settings: GOLDConfig, tokenizer: Any, teacher: Any, asked: Asked) -> None:
    """Raises UserError for what can't be laid side by side, and says where the vocabularies are one."""
    if vocabulary_difference(tokenizer, teacher) is None:
        say("  student and teacher have one vocabulary: distillation=on_policy compares them token by token")
    for name, found in (("model.id", tokenizer), ("teacher.at", teacher)):
        if settings.use_extended_uld and not (found.is_fast and is_byte_level_tokenizer(found.backend_tokenizer)):
            raise UserError(
                f"{name}: its tokenizer isn't of bytes, so its tokens' places in a text aren't known; "
                "set +distill.trainer.use_extended_uld=false"
            )
    bare = [row for row in asked.rows if not row.completion]
    if bare and settings.lmbda < 1:
        raise UserError(
            f"{bare[0].source}: row {bare[0].id} has no completion, like {len(bare) - 1:,} others, and with "
            f"distill.trainer.lmbda={settings.lmbda:g} some batches are the rows' own; set it to 1.0"
        )
    longest = max(asked.lengths.values())
    if settings.max_length is not None and longest + settings.max_completion_length > settings.max_length:
        raise UserError(
            f"distill.trainer.max_length: the longest prompt has {longest} tokens, and answers up to "
            f"{settings.max_completion_length}; {settings.max_length} would cut it"
        )
    check_enough(settings, asked)


class CrossTrainer(GOLDTrainer):
    """TRL's trainer, whose teacher reads a prompt in its own chat template and whose ends of turns meet.

    TRL shows the teacher the student's template as text, end of turn included.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over a micro-batch

    told: "Prompts"
    ends: frozenset[int]
    prompt_lengths: list[int]

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        size = rows_per_step(self.args)
        return LikeLength(self.prompt_lengths, size, self.args.gradient_accumulation_steps, self.args.seed)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *further: Any, **named: Any) -> Any:
        return super().compute_loss(model, self._as_told(inputs), *further, **named)

    def _as_told(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with the teacher's prompts, completions without the student's end of turn, which comes last."""
        labels = inputs["labels"].clone()
        prompts, completions = [], []
        for number, ids in enumerate(inputs["input_ids"].tolist()):
            said = [at for at, label in enumerate(labels[number].tolist()) if label != IGNORED]
            end = next((place for place, at in enumerate(said) if ids[at] in self.ends), len(said))
            text = self._tokenizer.decode(
                [ids[at] for at in said[:end]], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            labels[number, said[end + 1 :]] = IGNORED  # such as the line break behind the end of a turn
            seen = inputs["prompt_attention_mask"][number].bool()
            prompts.append(self.told.of(inputs["prompts"][number][seen].tolist()))
            completions.append(text)
        told = {"original_prompt_text": prompts, "original_completion_text": completions}
        return {**inputs, **told, "labels": labels}


class Prompts:
    """The rows' prompts as the teacher's chat template writes them, found by the student's tokens.

    Raises UserError where a row's own conversation is over `max_length` of the student's tokens.
    """

    def __init__(
        self, tokenizer: Any, template: Mapping[str, Any], teacher: Any, rows: Sequence[Row], max_length: int | None
    ) -> None:
        none, prompts = [None] * len(rows), [row.prompt for row in rows]
        asked = render(tokenizer, prompts, none, template, prompt=True)
        whole = render(tokenizer, [[*row.prompt, *row.completion] for row in rows], none, template, prompt=False)
        for row, ids in zip(rows, whole, strict=True):
            if max_length is not None and len(ids) > max_length:
                raise UserError(
                    f"{row.source}: row {row.id} has {len(ids)} tokens, distill.trainer.max_length is {max_length}"
                )
        written = [_without_begin(text, teacher.tokenizer) for text in _written(teacher, prompts, none)]
        self.longest = max(len(ids) for ids in teacher.tokenizer(written)["input_ids"])
        self._by_tokens: dict[tuple[int, ...], str] = {}
        for ids, all_ids, text in zip(asked, whole, written, strict=True):
            shared = next((i for i, pair in enumerate(zip(ids, all_ids, strict=False)) if pair[0] != pair[1]), len(ids))
            # TRL cuts a row's own conversation where its prompt ends; a token over that border is the completion's.
            self._by_tokens |= {tuple(ids): text, tuple(ids[:shared]): text}

    def of(self, ids: Sequence[int]) -> str:
        """The teacher's prompt for the student's."""
        return self._by_tokens[tuple(ids)]


def _written(teacher: Any, prompts: Sequence[Sequence[Message]], none: Sequence[None]) -> list[str]:
    from jinja2 import TemplateError

    try:
        return texts(teacher.tokenizer, prompts, none, teacher.template, prompt=True)
    except TemplateError as error:
        raise UserError(f"teacher.at: the teacher's chat template refuses the rows' prompts: {error}") from None


def _without_begin(text: str, tokenizer: Any) -> str:
    """TRL lets the tokenizer put its own beginning before a text; a template's would be a second one."""
    begin = tokenizer.bos_token
    adds = bool(begin) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(begin) if adds else text
