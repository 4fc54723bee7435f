"""Supervised fine-tuning on rows that are there, as both the stage sft and a student of written answers do it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows
from pipelines.errors import UserError
from pipelines.policy import mask
from pipelines.policy.base import end_tokens
from pipelines.policy.fit import trainer_settings
from pipelines.policy.geometry import SameSteps, rows_of_step, with_blanks
from pipelines.policy.learner import begin, peft_of
from pipelines.policy.packing import check_apart, check_packing, pack, rows_per_sequence
from pipelines.policy.row_names import ByTokens
from pipelines.progress import say
from pipelines.tracking.pictures import length_histogram

Examples = list[mask.Example]


def settings_of(config: Config, stage: str, work: Path) -> SFTConfig:
    """`trl.SFTConfig` from the stage's `trainer`; raises UserError where it, or packing, refuses a value."""
    field = f"{stage}.trainer"
    check_packing(config, field)
    made: SFTConfig = trainer_settings(SFTConfig, field, config, work)
    return made


def rows_to_imitate(place: Path, stage: str) -> list[Row]:
    """The rows of a file. Raises UserError where there are none, or one has no completion."""
    found = read_rows(place)
    if not found:
        raise UserError(f"{place}: no rows; {stage} needs some to train on")
    if bare := [row for row in found if not row.completion]:
        raise UserError(
            f"{bare[0].source}: row {bare[0].id} has no completion to imitate, like {len(bare) - 1:,} others; "
            "rows with an answer alone are there to be reinforced"
        )
    return found


def encode_answers(tokenizer: Any, rows: Sequence[Row], template: Mapping[str, Any]) -> Examples:
    """Tokens and labels: of each completion what the assistant says, and nothing else.

    Where tools answer within a completion, the chat template has to mark the assistant's turns.
    """
    turns = any(message["role"] != "assistant" for row in rows for message in row.completion)
    if turns:
        tools = next((row.tools for row in rows if row.tools), None)
        if not mask.MARK.search(tokenizer.get_chat_template(None, tools)):
            raise UserError(
                f"model.id: the chat template of {tokenizer.name_or_path} has no {{% generation %}} marks, so answers "
                "of tools can't be told from the assistant's turns"
            )
    loss = "assistant" if turns else "completion"
    found = mask.encode(tokenizer, rows, template, loss)
    return [_without_prompt(example) if example.prompt_answers else example for example in found]


def _without_prompt(example: mask.Example) -> mask.Example:
    """An earlier answer in the prompt isn't the teacher's."""
    start = example.prompt_length
    labels = [mask.IGNORED] * start + example.labels[start:]
    return replace(example, labels=labels, prompt_answers=False)


def audit(config: Config, tokenizer: Any, examples: Examples, stage: str, run: Any) -> mask.Audit:
    """Logs the audit of the loss mask and its examples to `run`, then refuses where it found a fault."""
    limit = getattr(config, stage).trainer.get("max_length")
    audited = mask.audit(examples, limit, end_tokens(config.model, tokenizer))
    run.metrics(audited.counts())
    run.data(mask.examples_page(tokenizer, examples, config.sft.audit.examples), "audit/loss_mask.html")
    problems = audited.problems(config.sft.audit.max_truncated_answers if stage == "sft" else 0, stage)
    if problems:
        run.data(length_histogram(audited.lengths, limit), "audit/lengths.png")
        run.data("\n".join(problems), "audit/problems.txt")
        raise UserError("the loss-mask audit refuses this run:\n" + "\n".join(f"  {line}" for line in problems))
    share = audited.num_trained / audited.num_tokens
    say(f"  {audited.num_rows:,} rows, {audited.num_tokens:,} tokens, {share:.0%} of them trained; loss mask sound")
    return audited


class ImitationTrainer(SameSteps, SFTTrainer):
    """TRL's trainer, whose steps are the same rows however they are divided, and whose rows can be named."""

    row_ids: ByTokens


def build_trainer(
    config: Config, settings: SFTConfig, student: Any, tokenizer: Any, examples: Mapping[str, Examples], stage: str
) -> SFTTrainer:
    """The SFTTrainer over encoded rows, `train` and perhaps `validation`, adapter attached and checked."""
    data = {
        split: Dataset.from_dict({"input_ids": [e.input_ids for e in found], "labels": [e.labels for e in found]})
        for split, found in examples.items()
    }
    if settings.packing:
        data = {split: pack(rows, settings.max_length) for split, rows in data.items()}
        # The trainer would pack the sequences again, a thousand at a time.
        settings.dataset_kwargs = {**(settings.dataset_kwargs or {}), "skip_prepare_dataset": True}
    trainer = ImitationTrainer(
        model=student,
        args=settings,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=tokenizer,
        peft_config=peft_of(config, student),
    )
    trainer.train_dataset = with_blanks(trainer.train_dataset, settings, tokenizer.pad_token_id)
    trainer.row_ids = ByTokens(examples["train"], settings.max_length)
    begin(config, student, trainer, Path(settings.output_dir).parent)
    if settings.packing:
        check_apart(trainer, f"{stage}.trainer")
    return trainer


def check_labels(trainer: Any, audited: mask.Audit) -> None:
    """What the trainer will learn is what the audit saw; the first label of a packed row is never used."""
    learned = sum(label != mask.IGNORED for labels in trainer.train_dataset["labels"] for label in labels)
    if learned != audited.num_trained:
        raise RuntimeError(f"the trainer would learn {learned} tokens, the audit saw {audited.num_trained}")


def rows_per_step(trainer: Any) -> int:
    """Rows of an optimizer step, on average where they are packed."""
    return round(rows_of_step(trainer.args) * rows_per_sequence(trainer.train_dataset))
