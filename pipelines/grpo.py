"""rows (+ adapter) -> adapter: reinforcement learning with verifiable rewards through TRL's GRPOTrainer."""

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.compute import ranks
from pipelines.config.schema import Config
from pipelines.contract import terms
from pipelines.dataset.questions import write_questions
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows
from pipelines.environments.tools import environment_class
from pipelines.errors import UserError
from pipelines.policy.base import end_tokens, load_tokenizer, template_switches
from pipelines.policy.lengths import Room, prompt_lengths
from pipelines.policy.order import like_length
from pipelines.product import Product
from pipelines.progress import meter, say
from pipelines.rewards.pass_rates import Sampler, in_band
from pipelines.rewards.recorder import WHOLE, Recorder
from pipelines.rewards.rollouts import FILE, Batch, Rollouts
from pipelines.rewards.scoring import Scorer
from pipelines.rewards.spawned import spawned
from pipelines.stages import STAGES
from pipelines.tracking.episodes import log_episode
from pipelines.tracking.pictures import reward_curves
from pipelines.tracking.run import Run, finite
from pipelines.verification import Verification, verification

STAGE = "grpo"
SPLIT = "train"
RATES = "pass_rates.json"  # of each row, how many samples were right and how many had a verdict
ROWS_AT_ONCE = 512


def unneeded(config: Config) -> tuple[str, ...]:
    """The adapter to go on from, where a new one is trained."""
    return ("adapter",) if config.grpo.start == "base" else ()


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Trains the adapter into `work`; returns what its manifest says about it."""
    from pipelines.policy.out_of_memory import smaller_until_it_fits

    if config.grpo.asynchronous:  # the process that makes the answers can't begin anew
        return _run(config, inputs, work, run)
    return smaller_until_it_fits(config, STAGE, work, lambda fitting: _run(fitting, inputs, work, run), run.tags)


def _run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    method = importlib.import_module(f"pipelines.policy.{'asynchronous' if config.grpo.asynchronous else 'reinforce'}")
    settings = method.settings_of(config, work)
    rows = _rows(config, inputs["rows"])
    tokenizer = load_tokenizer(config.model)
    limit, field = settings.max_completion_length, "grpo.trainer.max_completion_length"
    room = Room(config.model.context_length, config.model.name, limit, field)
    lengths = prompt_lengths(tokenizer, template_switches(config.model), rows, room)
    run.input(config.task.name, inputs["rows"].file(f"{SPLIT}.jsonl"), inputs["rows"].about["digests"][SPLIT], SPLIT)
    say(
        f"  {len(rows):,} prompts of at most {max(lengths.values())} tokens, {settings.num_generations} answers to each"
    )
    if config.grpo.asynchronous:
        made = _train_aside(config, settings, (tokenizer, rows, inputs), work, run)
    else:
        with _verifiers(config) as (checked, audit):
            scorer = Scorer(config.grpo, checked, audit, settings.max_completion_length, config.seed)
            made = _train(config, settings, (tokenizer, rows, lengths, scorer, checked), inputs, work, run)
            _told(checked, run)
    parent = inputs.get("adapter")
    # Evaluation refuses held-out rows that were trained on, here or in the adapter that this one goes on from.
    write_questions(work, rows, parent.folder if parent else None)
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
    config: Config,
    settings: Any,
    parts: tuple[Any, list[Row], Mapping[str, int], Scorer, Verification],
    inputs: Mapping[str, Product],
    work: Path,
    run: Run,
) -> dict[str, Any]:
    from pipelines.policy.fit import hand_over
    from pipelines.policy.reinforce import Asked, build_trainer, load_policy, reinforce

    tokenizer, rows, lengths, scorer, checked = parts
    parent = inputs.get("adapter")
    policy = load_policy(config, settings, parent)
    if config.grpo.pass_rate.samples is not None:
        rows = _worth_asking(config, settings, (policy, tokenizer), rows, checked, work)
    size = settings.generation_batch_size // settings.num_generations
    rows = [rows[number] for number in like_length([lengths[row.id] for row in rows], size, config.seed)]
    rollouts = Rollouts(ranks.shared(work) / "rollouts", run.id, ranks.rank())
    recorder = Recorder(config.grpo, scorer, rows, settings.num_generations, rollouts, Sink(run))
    environment = environment_class(config.task.environment) if config.task.environment else None
    functions = recorder.functions()
    asked = Asked(rows, list(functions.values()), [float(name == WHOLE) for name in functions], environment)
    trainer = build_trainer(config, settings, policy, tokenizer, asked, work)
    recorder.ends, recorder.has_tools = frozenset(trainer.eos_token_ids), environment is not None
    try:
        fitted = reinforce(trainer, recorder.begin_at, recorder.log, terms(STAGES["grpo"], config, inputs))
    finally:
        if ranks.is_main():
            _log_rollouts(rollouts, recorder.history, work, run)
    made = hand_over(config, trainer, tokenizer, fitted, work)
    if ranks.is_main():
        rollouts.remove()
    run.metrics({"grpo/train_seconds": fitted.seconds, "grpo/steps": fitted.steps})
    return made | {"recipe": config.grpo.recipe, "parent": parent.named() if parent else None}


def _worth_asking(
    config: Config, settings: Any, sampled: tuple[Any, Any], rows: list[Row], checked: Verification, work: Path
) -> list[Row]:
    """The rows within `grpo.pass_rate`; the rates are kept, so that a restart asks the same rows."""
    band, place = config.grpo.pass_rate, ranks.shared(work) / RATES
    if not place.exists():
        model, tokenizer = sampled
        sampler = Sampler(
            model=model.eval(),
            tokenizer=tokenizer,
            template=template_switches(config.model),
            batch_size=config.compute.eval_batch_size,
            count=band.samples or 1,
            max_new_tokens=settings.max_completion_length,
            temperature=settings.temperature,
            seed=config.seed,
        )
        with meter("pass rates", len(rows), "rows") as shown:
            found = [
                rate
                for at in range(0, len(rows), ROWS_AT_ONCE)
                for rate in sampler.passed(rows[at : at + ROWS_AT_ONCE], checked, shown.advance)
            ]
        if ranks.is_main():
            partial = place.with_suffix(".partial")
            partial.write_text(json.dumps({row.id: rate for row, rate in zip(rows, found, strict=True)}) + "\n")
            partial.replace(place)
    rates = ranks.from_main(lambda: json.loads(place.read_text()))
    kept = [row for row in rows if in_band(rates[row.id], band.low, band.high)]
    say(f"  {len(kept):,} of them with a pass rate of {band.low:g} to {band.high:g}")
    if not kept:
        raise UserError("grpo.pass_rate: no row is within low and high; widen them, or look at what the model answers")
    return kept


def _train_aside(
    config: Config, settings: Any, parts: tuple[Any, list[Row], Mapping[str, Product]], work: Path, run: Run
) -> dict[str, Any]:
    """As `_train`, with answers that are made and rewarded in a process of their own while training goes on."""
    from pipelines.policy.asynchronous import Logged, build_trainer, train
    from pipelines.policy.fit import hand_over

    tokenizer, rows, inputs = parts
    place = inputs["rows"].file(f"{SPLIT}.jsonl")
    rollouts, ends = Rollouts(work / "rollouts", run.id), end_tokens(config.model, tokenizer)
    reward = spawned(config, place, work / "rollouts", run.id, settings.max_completion_length, ends)
    trainer = build_trainer(config, settings, tokenizer, rows, reward)
    try:
        fitted = train(trainer, Logged(config.grpo.watch, Sink(run)), terms(STAGES["grpo"], config, inputs))
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
