"""rows -> adapter: supervised fine-tuning through TRL's SFTTrainer, its loss mask audited first."""

from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.dataset.questions import write_questions
from pipelines.dataset.rows import read_rows
from pipelines.errors import UserError
from pipelines.policy import mask
from pipelines.policy.base import end_tokens, template_switches
from pipelines.policy.packing import check_apart, check_packing, pack, rows_per_sequence
from pipelines.product import Product
from pipelines.progress import say
from pipelines.tracking.pictures import length_histogram, loss_curve
from pipelines.tracking.run import Run, finite

SPLITS = ("train", "validation")


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Trains the adapter into `work`; returns what its manifest says about it."""
    settings = trainer_settings(config, work)
    tokenizer = _tokenizer(config)
    examples = {split: _encoded(config, tokenizer, inputs["rows"], split) for split in SPLITS}
    audited = _audit(config, tokenizer, examples["train"], run)
    for split in examples:
        digest = inputs["rows"].about["digests"][split]
        run.input(config.task.name, inputs["rows"].file(f"{split}.jsonl"), digest, split)
    trainer = build_trainer(config, settings, tokenizer, examples)
    _check_labels(trainer, audited)
    examples.clear()  # the trainer has its own copy
    fitted = _fit(config, trainer, work, run)
    _draw_lengths(config, audited, run)
    # Evaluation refuses held-out rows that are among them, whoever brings the rows.
    write_questions(work, (row for split in SPLITS for row in read_rows(inputs["rows"].file(f"{split}.jsonl"))))
    return _save(config, trainer, tokenizer, fitted, work, run)


def trainer_settings(config: Config, work: Path) -> Any:
    """`trl.SFTConfig` from `sft.trainer`; raises UserError where it, or packing, refuses a value."""
    from trl import SFTConfig

    from pipelines.policy.fit import trainer_settings as made_of

    check_packing(config)
    return made_of(SFTConfig, "sft.trainer", config, work)


def _tokenizer(config: Config) -> Any:
    from pipelines.policy.base import load_tokenizer

    return load_tokenizer(config.model)


def _encoded(config: Config, tokenizer: Any, rows: Product, split: str) -> list[mask.Example]:
    found = read_rows(rows.file(f"{split}.jsonl"))
    if not found:
        raise UserError(f"{rows.file(f'{split}.jsonl')}: no rows; sft needs some to train on and to validate with")
    if bare := [row for row in found if not row.completion]:
        raise UserError(
            f"{bare[0].source}: row {bare[0].id} has no completion to imitate, like {len(bare) - 1:,} others; "
            "rows with an answer alone are there to be reinforced"
        )
    return mask.encode(tokenizer, found, template_switches(config.model), config.sft.loss)


def _audit(config: Config, tokenizer: Any, examples: list[mask.Example], run: Run) -> mask.Audit:
    """Logs the audit and its examples, then refuses where it found a fault."""
    limit = config.sft.trainer.get("max_length")
    audited = mask.audit(examples, limit, end_tokens(config.model, tokenizer))
    run.metrics(audited.counts())
    run.data(mask.examples_page(tokenizer, examples, config.sft.audit.examples), "audit/loss_mask.html")
    problems = audited.problems(config.sft.audit.max_truncated_answers)
    if problems:
        _draw_lengths(config, audited, run)
        run.data("\n".join(problems), "audit/problems.txt")
        raise UserError("the loss-mask audit refuses this run:\n" + "\n".join(f"  {line}" for line in problems))
    share = audited.num_trained / audited.num_tokens
    say(f"  {audited.num_rows:,} rows, {audited.num_tokens:,} tokens, {share:.0%} of them trained; loss mask sound")
    return audited


def _draw_lengths(config: Config, audited: mask.Audit, run: Run) -> None:
    run.data(length_histogram(audited.lengths, config.sft.trainer.get("max_length")), "audit/lengths.png")


def build_trainer(config: Config, settings: Any, tokenizer: Any, examples: dict[str, list[mask.Example]]) -> Any:
    """The SFTTrainer over encoded rows, adapter attached and checked."""
    from datasets import Dataset
    from transformers import EarlyStoppingCallback
    from trl import SFTTrainer

    from pipelines.policy.adapter import check_attached, peft_config, starts_from_quantization_error
    from pipelines.policy.base import load_base
    from pipelines.policy.start import fit_quantization_error

    data = {
        split: Dataset.from_dict({"input_ids": [e.input_ids for e in found], "labels": [e.labels for e in found]})
        for split, found in examples.items()
    }
    if settings.packing:
        data = {split: pack(rows, settings.max_length) for split, rows in data.items()}
        # The trainer would pack the sequences again, a thousand at a time.
        settings.dataset_kwargs = {**(settings.dataset_kwargs or {}), "skip_prepare_dataset": True}
    patience = config.sft.early_stopping_patience
    trainer = SFTTrainer(
        model=load_base(config.model, config.adapter, config.compute),
        args=settings,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        peft_config=peft_config(config.adapter, config.model),
        callbacks=[EarlyStoppingCallback(patience)] if patience else [],
    )
    if starts_from_quantization_error(config.adapter):
        fit_quantization_error(trainer.model, config.model)
    counts = check_attached(trainer.model, config.adapter, config.model)
    if settings.packing:
        check_apart(trainer)
    say(f"  {config.adapter.name}: {counts['trainable_parameters']:,} parameters to train")
    return trainer


def _check_labels(trainer: Any, audited: mask.Audit) -> None:
    """What the trainer will learn is what the audit saw; the first label of a packed row is never used."""
    learned = sum(label != mask.IGNORED for labels in trainer.train_dataset["labels"] for label in labels)
    if learned != audited.num_trained:
        raise RuntimeError(f"the trainer would learn {learned} tokens, the audit saw {audited.num_trained}")


def _fit(config: Config, trainer: Any, work: Path, run: Run) -> Any:
    from pipelines.policy.adapter import changes_base
    from pipelines.policy.fit import START, fit
    from pipelines.policy.start import save_start

    if changes_base(config.adapter):
        save_start(trainer.model, work / START)
    args = trainer.args
    rows_per_step = round(
        args.per_device_train_batch_size * args.gradient_accumulation_steps * rows_per_sequence(trainer.train_dataset)
    )
    return fit(
        trainer,
        lambda values, step: run.metrics(finite({f"sft/{name}": v for name, v in values.items()}), step),
        rows_per_step,
    )


def _save(config: Config, trainer: Any, tokenizer: Any, fitted: Any, work: Path, run: Run) -> dict[str, Any]:
    from pipelines.policy.fit import hand_over

    made = hand_over(config, trainer, tokenizer, fitted, work)
    run.data(loss_curve(fitted.history), "sft/loss.png")
    run.metrics({"sft/train_seconds": fitted.seconds, "sft/steps": fitted.steps})
    return made
