"""rows -> adapter: supervised fine-tuning through TRL's SFTTrainer, its loss mask audited first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.contract import terms
from pipelines.dataset.questions import write_questions
from pipelines.dataset.rows import read_rows
from pipelines.policy import mask
from pipelines.policy.base import template_switches
from pipelines.product import Product
from pipelines.stages import STAGES
from pipelines.tracking.pictures import length_histogram, loss_curve
from pipelines.tracking.run import Run, finite

STAGE = "sft"
SPLITS = ("train", "validation")


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Trains the adapter into `work`; returns what its manifest says about it."""
    from pipelines.policy.out_of_memory import smaller_until_it_fits

    return smaller_until_it_fits(config, STAGE, work, lambda fitting: _train(fitting, inputs, work, run), run.tags)


def _train(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    from pipelines.policy.imitation import audit, check_labels

    settings = trainer_settings(config, work)
    tokenizer = _tokenizer(config)
    examples = {split: _encoded(config, tokenizer, inputs["rows"], split) for split in SPLITS}
    audited = audit(config, tokenizer, examples["train"], STAGE, run)
    for split in examples:
        digest = inputs["rows"].about["digests"][split]
        run.input(config.task.name, inputs["rows"].file(f"{split}.jsonl"), digest, split)
    trainer = build_trainer(config, settings, tokenizer, examples)
    check_labels(trainer, audited)
    examples.clear()  # the trainer has its own copy
    fitted = _fit(config, trainer, terms(STAGES[STAGE], config, inputs), run)
    run.data(length_histogram(audited.lengths, config.sft.trainer.get("max_length")), "audit/lengths.png")
    # Evaluation refuses held-out rows that are among them, whoever brings the rows.
    write_questions(work, (row for split in SPLITS for row in read_rows(inputs["rows"].file(f"{split}.jsonl"))))
    return _save(config, trainer, tokenizer, fitted, work, run)


def trainer_settings(config: Config, work: Path) -> Any:
    """`trl.SFTConfig` from `sft.trainer`; raises UserError where it, or packing, refuses a value."""
    from pipelines.policy.imitation import settings_of

    return settings_of(config, STAGE, work)


def _tokenizer(config: Config) -> Any:
    from pipelines.policy.base import load_tokenizer

    return load_tokenizer(config.model)


def _encoded(config: Config, tokenizer: Any, rows: Product, split: str) -> list[mask.Example]:
    from pipelines.policy.imitation import rows_to_imitate

    found = rows_to_imitate(rows.file(f"{split}.jsonl"), STAGE)
    return mask.encode(tokenizer, found, template_switches(config.model), config.sft.loss)


def build_trainer(config: Config, settings: Any, tokenizer: Any, examples: dict[str, list[mask.Example]]) -> Any:
    """The SFTTrainer over encoded rows, adapter attached and checked."""
    from transformers import EarlyStoppingCallback

    from pipelines.policy import imitation
    from pipelines.policy.base import load_base

    base = load_base(config.model, config.adapter, config.compute)
    trainer = imitation.build_trainer(config, settings, base, tokenizer, examples, STAGE)
    if config.sft.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(config.sft.early_stopping_patience))
    return trainer


def _fit(config: Config, trainer: Any, terms: Mapping[str, Any], run: Run) -> Any:
    from pipelines.policy.fit import Course, fit
    from pipelines.policy.imitation import rows_per_step
    from pipelines.policy.spikes import Spikes

    spikes = Spikes(config.sft.watch, lambda records: run.table(records, f"{STAGE}/loss_spikes.json"), STAGE)
    return fit(
        trainer,
        lambda values, step: run.metrics(finite({f"sft/{name}": v for name, v in values.items()}), step),
        Course(rows_per_step(trainer), terms, spikes=spikes),
    )


def _save(config: Config, trainer: Any, tokenizer: Any, fitted: Any, work: Path, run: Run) -> dict[str, Any]:
    from pipelines.policy.fit import hand_over

    made = hand_over(config, trainer, tokenizer, fitted, work)
    run.data(loss_curve(fitted.history), "sft/loss.png")
    run.metrics({"sft/train_seconds": fitted.seconds, "sft/steps": fitted.steps})
    return made
