"""rows + teacher (+ adapter), or what a teacher wrote -> the student's adapter."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.config.teaching import FROM_GENERATED
from pipelines.contract import terms
from pipelines.dataset.questions import write_questions
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows
from pipelines.errors import UserError
from pipelines.policy.base import load_tokenizer, template_switches
from pipelines.policy.lengths import Room, prompt_lengths
from pipelines.product import Product
from pipelines.progress import say
from pipelines.stages import STAGES
from pipelines.subjects.teacher import Loaded, find, loaded, scorer
from pipelines.tracking.pictures import loss_curve
from pipelines.tracking.run import Run, finite

STAGE = "distill"
SPLIT = "train"
LIVE = {"on_policy": "on_policy", "prompted": "on_policy", "cross_tokenizer": "cross_tokenizer"}

Learnt = tuple[dict[str, Any], list[Row]]  # what the manifest says, and the rows that were learnt from


def unneeded(config: Config) -> tuple[str, ...]:
    """The adapter where a new one is trained, and of rows and generated the one that the method doesn't learn from."""
    without = "rows" if config.distill.method in FROM_GENERATED else "generated"
    return (without, "adapter") if config.distill.start == "base" else (without,)


def files(config: Config) -> Mapping[str, Any]:
    """The teacher by content, where it is asked here."""
    return {} if config.distill.method in FROM_GENERATED else find(config).record()


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Trains the adapter into `work`; returns what its manifest says about it."""
    from pipelines.policy.out_of_memory import smaller_until_it_fits

    return smaller_until_it_fits(config, STAGE, work, lambda fitting: _train(fitting, inputs, work, run), run.tags)


def _train(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    learn = _learn_from_written if config.distill.method in FROM_GENERATED else _learn_from_live
    parent = inputs.get("adapter")
    made, rows = learn(config, inputs, work, run)
    # Evaluation refuses held-out rows that were trained on, here or in the adapter that this one goes on from.
    write_questions(work, rows, parent.folder if parent else None)
    return made | {"recipe": config.distill.recipe, "parent": parent.named() if parent else None}


def _learn_from_live(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> Learnt:
    """Learning from a teacher that is loaded beside the student, or told by a server."""
    from pipelines.policy.learner import load_learner

    method = importlib.import_module(f"pipelines.policy.{LIVE[config.distill.method]}")
    settings = method.settings_of(config, work)
    rows = _rows(config, inputs["rows"])
    tokenizer = load_tokenizer(config.model)
    limit, field = settings.max_completion_length, "distill.trainer.max_completion_length"
    room = Room(config.model.context_length, config.model.name, limit, field)
    lengths = prompt_lengths(tokenizer, template_switches(config.model), rows, room)
    teacher = find(config)
    there = loaded(config, teacher) if teacher.endpoint is None else scorer(config, teacher, tokenizer)
    run.input(config.task.name, inputs["rows"].file(f"{SPLIT}.jsonl"), inputs["rows"].about["digests"][SPLIT], SPLIT)
    say(f"  {len(rows):,} prompts of at most {max(lengths.values())} tokens")
    student = load_learner(config, inputs.get("adapter"))
    asked = method.Asked(rows, lengths)
    if isinstance(there, Loaded):
        trainer = method.build_trainer(config, settings, (student, there), tokenizer, asked, work)
    else:
        from pipelines.policy import server_teacher

        trainer = server_teacher.build_trainer(config, settings, (student, there), tokenizer, asked, work)
    made = _fit(config, inputs, (trainer, tokenizer), method.rows_per_step(settings), work, run)
    if teacher.endpoint is not None:
        run.metrics({"distill/cost": teacher.endpoint.spent})
    return made | {"teacher": teacher.record(), "generated": None}, rows


def _learn_from_written(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> Learnt:
    """Learning from rows that a teacher wrote, or from the distributions that it left beside them."""
    from pipelines.policy import imitation, stored_logits
    from pipelines.policy.learner import load_learner

    generated, place = inputs["generated"], inputs["generated"].file(f"{SPLIT}.jsonl")
    settings = imitation.settings_of(config, STAGE, work)
    rows = imitation.rows_to_imitate(place, STAGE)
    tokenizer = load_tokenizer(config.model)
    examples = imitation.encode_answers(tokenizer, rows, template_switches(config.model))
    audited = imitation.audit(config, tokenizer, examples, STAGE, run)
    run.input(config.task.name, place, generated.about["digests"][SPLIT], SPLIT)
    stored = None
    if config.distill.method == "stored_logits":
        stored = stored_logits.opened(generated.folder / stored_logits.FOLDER, rows, examples, tokenizer)
    student = load_learner(config, inputs.get("adapter"))
    if stored is None:
        trainer = imitation.build_trainer(config, settings, student, tokenizer, {SPLIT: examples}, STAGE)
    else:
        trainer = stored_logits.build_trainer(config, settings, student, tokenizer, examples, stored)
    imitation.check_labels(trainer, audited)
    made = _fit(config, inputs, (trainer, tokenizer), imitation.rows_per_step(trainer), work, run)
    return made | {"teacher": generated.about.get("teacher"), "generated": generated.digest}, rows


def _rows(config: Config, rows: Product) -> list[Row]:
    """The rows that the student is asked. Raises UserError where their answers would be calls of tools."""
    place = rows.file(f"{SPLIT}.jsonl")
    found = read_rows(place)
    if not found:
        raise UserError(f"{place}: no rows; distill needs some to ask")
    if offered := [row for row in found if row.tools]:
        raise UserError(
            f"{offered[0].source}: row {offered[0].id} offers tools, and with distill.method "
            f"{config.distill.method} nothing would answer a call of them; use distillation=sequence"
        )
    return found


def _fit(
    config: Config,
    inputs: Mapping[str, Product],
    trained: tuple[Any, Any],
    rows_per_step: int,
    work: Path,
    run: Run,
) -> dict[str, Any]:
    from pipelines.policy.fit import Course, fit, hand_over
    from pipelines.policy.spikes import Spikes

    trainer, tokenizer = trained
    spikes = Spikes(config.distill.watch, lambda records: run.table(records, f"{STAGE}/loss_spikes.json"), STAGE)
    fitted = fit(
        trainer,
        lambda values, step: run.metrics(finite({f"distill/{name}": v for name, v in values.items()}), step),
        Course(rows_per_step, terms(STAGES[STAGE], config, inputs), spikes=spikes),
    )
    made = hand_over(config, trainer, tokenizer, fitted, work)
    run.data(loss_curve(fitted.history), "distill/loss.png")
    run.metrics({"distill/train_seconds": fitted.seconds, "distill/steps": fitted.steps})
    return made
