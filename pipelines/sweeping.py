"""A sweep by Hydra's sweepers and launchers: side by side on this machine, on a Slurm cluster, or chosen by Optuna.

Every combination is composed, checked and carried out where the launcher runs it; all of them are children of one run.
"""

from collections.abc import Sequence
from functools import partial

from pipelines.config.compose import compose
from pipelines.config.sweep import by_plugins
from pipelines.errors import UserError
from pipelines.progress import say

PARENT = "mlflow.parentRunId"


def sweep(stage: str, overrides: Sequence[str]) -> None:
    """Runs the sweep to its end. Raises UserError where the configuration is mistaken before anything varies."""
    fixed = [text for text in overrides if not varies(text)]
    config = compose(fixed).config

    from pipelines.tracking.run import end_orphans, started
    from pipelines.tracking.store import open_store

    open_store(config.tracking)
    end_orphans()
    with started(f"sweep {stage}", {"stage": "sweep"}) as run:
        by_plugins(overrides, partial(carry_out, stage, run.id))


def varies(text: str) -> bool:
    """Whether an override says what is swept, or how."""
    return text.lstrip("+").startswith("hydra") or "," in text or "(" in text


def carry_out(stage: str, parent: str, overrides: list[str]) -> float | None:
    """One job, in whichever process; returns the metric that the sweeper is to be told."""
    from pipelines import masking
    from pipelines.__main__ import quieten
    from pipelines.engines import slurm

    masking.install()  # a launcher may have started this process
    quieten()
    config = compose(overrides).config
    slurm.take_place(config)

    from pipelines.execute import execute
    from pipelines.tracking.run import started
    from pipelines.tracking.store import open_store

    say(f"job: {' '.join(overrides)}")
    open_store(config.tracking)
    if slurm.is_first():
        with started("job", {"stage": "job", "overrides": " ".join(overrides), PARENT: parent}) as run:
            execute(stage, config)
        return told(run.id, config.sweep_metric)
    execute(stage, config)
    return None


def told(run_id: str, metric: str | None) -> float | None:
    """The job's last value of the metric; None where none is asked for. Raises UserError where it has none."""
    if metric is None:
        return None
    from pipelines.tracking.run import latest

    value = latest(run_id, metric)
    if value is None:
        raise UserError(f"sweep_metric: the job has no metric {metric}")
    return value
