"""rows (+ adapter) -> adapter: reinforcement learning with verifiable rewards through TRL's GRPOTrainer."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.dataset.questions import FILE as QUESTIONS
from pipelines.dataset.questions import fingerprints, read_questions, write_fingerprints
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows
from pipelines.environments.tools import environment_class
from pipelines.errors import UserError
from pipelines.policy.base import end_tokens, load_tokenizer, template_switches
from pipelines.policy.template import render
from pipelines.product import Product
from pipelines.progress import say
from pipelines.rewards.recorder import WHOLE, Recorder
from pipelines.rewards.rollouts import FILE, Batch, Rollouts
from pipelines.rewards.scoring import Scorer
from pipelines.rewards.spawned import spawned
from pipelines.tracking.episodes import log_episode
from pipelines.tracking.pictures import reward_curves
from pipelines.tracking.run import Run, finite
from pipelines.verification import Verification, verification

SPLIT = "train"


def unneeded(config: Config) -> tuple[str, ...]:
    """The adapter to go on from, where a new one is trained."""
    return ("adapter",) if config.grpo.start == "base" else ()


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Trains the adapter into `work`; returns what its manifest says about it."""
    method = importlib.import_module(f"pipelines.policy.{'asynchronous' if config.grpo.asynchronous else 'reinforce'}")
    settings = method.settings_of(config, work)
    rows = _rows(config, inputs["rows"])
    tokenizer = load_tokenizer(config.model)
    longest = _check_lengths(config, tokenizer, rows, settings.max_completion_length)
    run.input(config.task.name, inputs["rows"].file(f"{SPLIT}.jsonl"), inputs["rows"].about["digests"][SPLIT], SPLIT)
    say(f"  {len(rows):,} prompts of at most {longest} tokens, {settings.num_generations} answers to each")
    if config.grpo.asynchronous:
        made = _train_aside(config, settings, (tokenizer, rows, inputs["rows"].file(f"{SPLIT}.jsonl")), work, run)
    else:
        with _verifiers(config) as (checked, audit):
            scorer = Scorer(config.grpo, checked, audit, settings.max_completion_length, config.seed)
            made = _train(config, settings, (tokenizer, rows, scorer), inputs.get("adapter"), work, run)
            _told(checked, run)
    _write_questions(work, rows, inputs.get("adapter"))
    return made


def _rows(config: Config, rows: Product) -> list[Row]:
    place = rows.file(f"{SPLIT}.jsonl")
    found = read_rows(place)
    if not found:
        raise UserError(f"{place}: no rows; grpo needs some to ask")
    if config.task.environment is None and (offered := [row for row in found if row.tools]):
        raise UserError(
            f"{offered[0].source}: row {offered[0].id} offers tools, and nothing would answer a call of them; "
            "set task.environment"
        )
    return found


def _check_lengths(config: Config, tokenizer: Any, rows: list[Row], limit: int) -> int:
    """Tokens of the longest prompt. Raises UserError where it leaves no room for an answer."""
    switches = template_switches(config.model)
    prompts = render(tokenizer, [row.prompt for row in rows], [row.tools for row in rows], switches, prompt=True)
    longest = max(range(len(rows)), key=lambda number: len(prompts[number]))
    tokens = len(prompts[longest])
    if tokens + limit > config.model.context_length:
        raise UserError(
            f"{rows[longest].source}: row {rows[longest].id} has a prompt of {tokens} tokens; with "
            f"grpo.trainer.max_completion_length={limit} that is over the {config.model.context_length} tokens of "
            f"{config.model.name}'s context; lower it, or drop long rows with prepare.max_length"
        )
    return tokens


@contextlib.contextmanager
def _verifiers(config: Config) -> Iterator[tuple[Verification, Verification | None]]:
    """The task's verify, and its audit where it has one that is asked."""
    with contextlib.ExitStack() as stack:
        checked = stack.enter_context(verification(config.task, config.verifier))
        audit = None
        if config.task.audit is not None and config.grpo.watch.audit_share:
            audit = stack.enter_context(verification(config.task, config.verifier, config.task.audit))
        yield checked, audit


def _train(
    config: Config, settings: Any, parts: tuple[Any, list[Row], Scorer], parent: Product | None, work: Path, run: Run
) -> dict[str, Any]:
    from pipelines.policy.fit import hand_over
    from pipelines.policy.reinforce import Asked, build_trainer, reinforce

    tokenizer, rows, scorer = parts
    rollouts = Rollouts(work / "rollouts", run.id)
    recorder = Recorder(config.grpo, scorer, rows, settings.num_generations, rollouts, Sink(run))
    environment = environment_class(config.task.environment) if config.task.environment else None
    functions = recorder.functions()
    asked = Asked(rows, list(functions.values()), [float(name == WHOLE) for name in functions], environment)
    trainer = build_trainer(config, settings, tokenizer, asked, parent, work)
    recorder.ends, recorder.has_tools = frozenset(trainer.eos_token_ids), environment is not None
    try:
        fitted = reinforce(trainer, recorder.begin_at, recorder.log)
    finally:
        _log_rollouts(rollouts, recorder.history, work, run)
    made = hand_over(config, trainer, tokenizer, fitted, work)
    rollouts.remove()
    run.metrics({"grpo/train_seconds": fitted.seconds, "grpo/steps": fitted.steps})
    return made | {"recipe": config.grpo.recipe, "parent": _named(parent) if parent else None}


def _train_aside(
    config: Config, settings: Any, parts: tuple[Any, list[Row], Path], work: Path, run: Run
) -> dict[str, Any]:
    """As `_train`, with answers that are made and rewarded in a process of their own while training goes on."""
    from pipelines.policy.asynchronous import Logged, build_trainer, train
    from pipelines.policy.fit import hand_over

    tokenizer, rows, place = parts
    rollouts, ends = Rollouts(work / "rollouts", run.id), end_tokens(config.model, tokenizer)
    reward = spawned(config, place, work / "rollouts", run.id, settings.max_completion_length, ends)
    trainer = build_trainer(config, settings, tokenizer, rows, reward)
    try:
        fitted = train(trainer, Logged(config.grpo.watch, Sink(run)))
    finally:
        if rollouts.gather(work / FILE).num_rows:
            run.file(work / FILE, "grpo")
    made = hand_over(config, trainer, tokenizer, fitted, work)
    rollouts.remove()
    run.metrics({"grpo/train_seconds": fitted.seconds, "grpo/steps": fitted.steps})
    return made | {"recipe": config.grpo.recipe, "parent": None}


@dataclass(frozen=True)
class Sink:
    """The run, as the recorder of rewards sees it."""

    run: Run

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.run.metrics(finite(values), step)

    def episodes(self, batch: Batch, numbers: Sequence[int]) -> None:
        for number in numbers:
            log_episode(self.run, batch.records(self.run.id)[number])


def _named(parent: Product) -> dict[str, str]:
    return {"digest": parent.digest, "run_id": parent.run_id, "folder": str(parent.folder)}


def _log_rollouts(rollouts: Rollouts, history: Sequence[Mapping[str, float]], work: Path, run: Run) -> None:
    """What was generated and how it was rewarded, also where training ended early."""
    table = rollouts.gather(work / FILE)
    if table.num_rows:
        run.file(work / FILE, "grpo")
        run.data(reward_curves(table, history), "grpo/rewards.png")


def _told(checked: Verification, run: Run) -> None:
    counts = checked.counts
    run.metrics(
        {
            "grpo/verifier/num_answers": counts.total,
            "grpo/verifier/num_failed": counts.failed,
            "grpo/verifier/num_retried": counts.retried,
        }
    )
    if counts.failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.kinds.most_common())
        say(f"  {counts.failed:,} of {counts.total:,} answers have no verdict ({kinds}): no reward, and nothing learnt")


def _write_questions(work: Path, rows: list[Row], parent: Product | None) -> None:
    """Evaluation refuses held-out rows that were trained on here, or in the adapter that this one goes on from."""
    known = fingerprints(rows)
    if parent is not None and parent.file(QUESTIONS).exists():
        known |= read_questions(parent.file(QUESTIONS))
    write_fingerprints(work, known)
