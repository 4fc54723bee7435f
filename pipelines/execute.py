"""A validated configuration, carried out: store opened, base pinned, stage or flow run."""

import errno
from collections.abc import Sequence

from pipelines import finetune
from pipelines.config.compose import Composed
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy.base import pin
from pipelines.progress import say
from pipelines.stages import STAGES, gather, run_stage
from pipelines.tracking.run import end_orphans, started
from pipelines.tracking.store import open_store


def execute(stage: str, config: Config) -> None:
    """Runs a stage or the flow in the configured store."""
    open_store(config.tracking)
    for run_id in end_orphans():
        say(f"run {run_id} was left open by a process that is gone; ended as KILLED")
    _one(stage, config)


def sweep(stage: str, jobs: Sequence[Composed]) -> None:
    """Runs every job of a sweep as a child of one parent run; a failing job ends the sweep."""
    open_store(jobs[0].config.tracking)
    end_orphans()
    with started(f"sweep {stage}", {"stage": "sweep", "sweep.jobs": str(len(jobs))}):
        for number, job in enumerate(jobs, 1):
            say(f"job {number}/{len(jobs)}: {' '.join(job.overrides)}")
            with started(f"job {number}", {"stage": "job", "overrides": " ".join(job.overrides)}):
                _one(stage, job.config)


def _one(stage: str, config: Config) -> None:
    try:
        if stage != "prepare" and not (stage == "promote" and config.promote.model):
            config = config.model_copy(update={"model": pin(config.model)})
        if stage == "finetune":
            finetune.run(config)
        else:
            run_stage(STAGES[stage], config, gather(STAGES[stage], config))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{error.filename or 'the disk'}: {error.strerror}; free some space and start again"
            ) from None
        raise
