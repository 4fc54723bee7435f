"""What every subject of an evaluation is asked, made from the held-out rows and the configuration."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pipelines.config.schema import Config, Evaluate
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.evaluation.ask import Ask, Judged, batched, chosen
from pipelines.evaluation.heldout import Heldout
from pipelines.evaluation.metrics import METRICS, Scorer, unsupported
from pipelines.evaluation.red_team import Attempt, asked, read_attacks
from pipelines.evaluation.slices import check_columns
from pipelines.tasks import UNJUDGED
from pipelines.tasks.label import known_labels
from pipelines.verification import Verification, verification

TEXTS = ("token_f1", "rouge_l", "chrf")


@dataclass(frozen=True)
class Inquiry:
    """What is asked, and how answers are judged.

    `asks` share batches, the held-out `rows` first; the temperature is fitted on `validation`; `scorer` gives the
    rows' further metrics; `labels` are those that a subject chooses among, if it does, and `weighed` the ids of the
    rows on which all of them are. `notes` say what is left out, and why.
    """

    asks: Sequence[Ask]
    rows: Sequence[Row]
    validation: Sequence[Row]
    judged: Judged
    scorer: Scorer
    labels: Sequence[str]
    weighed: frozenset[str]
    settings: Evaluate
    seed: int
    notes: Sequence[str]


def judged_by(config: Config) -> AbstractContextManager[Verification | None]:
    """What judges answers, to be opened while any are; None where nothing does. Raises UserError."""
    if config.task.verify == UNJUDGED:
        return nullcontext()
    return verification(config.task, config.verifier)


def inquiry_of(config: Config, heldout: Heldout, verified: Verification | None) -> Inquiry:
    """Everything to ask, its answers judged by `verified`.

    Raises UserError where the rows can't support a metric that is asked for.
    """
    settings = config.evaluate
    check_columns(settings.slices.columns, [row.kept or {} for row in heldout.rows])
    labels = _labels(config, heldout)
    attempts, notes = _attempts(config, heldout.rows, labels)
    count, weighed = settings.calibration.validation_rows, settings.calibration.rows or len(heldout.rows)
    return Inquiry(
        asks=batched(heldout.rows, attempts, settings, config.seed),
        rows=heldout.rows,
        validation=chosen(heldout.validation, count, f"validation {config.seed}"),
        judged=Judged(config.task, verified),
        scorer=_scorer(config, heldout.rows),
        labels=labels,
        weighed=frozenset(row.id for row in chosen(heldout.rows, weighed, f"calibration {config.seed}")),
        settings=settings,
        seed=config.seed,
        notes=notes,
    )


def _scorer(config: Config, rows: Sequence[Row]) -> Scorer:
    """All further metrics of an answer at once."""
    wanted = [METRICS[name] for name in _metrics(config, rows) if name in METRICS]
    scorers = [metric.scorer(config.evaluate) for metric in wanted if metric.scorer]

    def score(answer: str, row: Row) -> dict[str, float]:
        return {name: value for one in scorers for name, value in one(answer, row).items()}

    return score


def _metrics(config: Config, rows: Sequence[Row]) -> list[str]:
    """The metrics that are asked for. Raises UserError naming one that the rows can't support."""
    judged = config.task.verify != UNJUDGED
    asked_for = config.evaluate.metrics
    if asked_for is None:
        found = ["accuracy"] if judged else list(TEXTS)
        return found + [name for name in ("tool_calls",) if unsupported(name, rows, config.evaluate) is None]
    for name in asked_for:
        reason = unsupported(name, rows, config.evaluate)
        if not judged and name in ("accuracy", "pass_at_k"):
            reason = f"task.verify of {config.task.name} is none, so nothing says what is right"
        if reason is not None:
            raise UserError(f"evaluate.metrics: the held-out rows can't support {name}: {reason}")
    return list(asked_for)


def _labels(config: Config, heldout: Heldout) -> list[str]:
    """What there is to choose among: the task's labels, or the answers of the rows that were trained on."""
    if config.task.verify != "label":
        return []
    return known_labels(config.task) or sorted(heldout.answers)


def _attempts(config: Config, rows: Sequence[Row], labels: Sequence[str]) -> tuple[list[Attempt], list[str]]:
    wraps = config.evaluate.red_team.wraps
    if wraps is None or not config.task.red_team:
        why = "evaluate.red_team.wraps is null" if wraps is None else f"task.red_team of {config.task.name} is empty"
        return [], [f"red team: left out, because {why}"]
    attacks = read_attacks(config.task.red_team)
    return asked(attacks, rows, labels, config.task.decline_label, wraps, config.seed)
