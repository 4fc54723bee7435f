"""A validated configuration, carried out: sources checked, store opened, base pinned, stage or flow run.

What needs MLflow or torch is imported after the sources are checked: a defect in a file is told in a second or two.
"""

import contextlib
import errno
import importlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines import product as products
from pipelines.compute import launch
from pipelines.compute.launch import TRAINING, node_rank
from pipelines.config.compose import Composed
from pipelines.config.schema import Config
from pipelines.config.teaching import SERVED
from pipelines.errors import UserError
from pipelines.holding import held
from pipelines.progress import say
from pipelines.stages import ACTIONS, STAGES, fingerprint_of, gather, place

ALONE = ("plan", "job", "compare")  # they look at models and nodes from outside


def execute(stage: str, config: Config) -> None:
    """Runs a stage or the flow in the configured store."""
    config = _check_ahead(stage, config)
    if stage not in ALONE and node_rank(config.compute):
        _assist(stage, config)
        return
    with _nothing_left(_check_sources(stage, config)):
        from pipelines.tracking.run import end_orphans
        from pipelines.tracking.store import open_store

        open_store(config.tracking)
    for run_id in end_orphans():
        say(f"run {run_id} was left open by a process that is gone; ended as KILLED")
    _one(stage, config)


def _assist(stage: str, config: Config) -> None:
    """The part of a node other than the first: its processes of a training, whose run and product are node 0's."""
    from pipelines.policy.base import pin

    if stage not in TRAINING:
        say(f"{stage}: node 0 does it")
        return
    config = config.model_copy(update={"model": pin(config.model)})
    inputs = gather(STAGES[stage], config)
    folder = place(STAGES[stage], config, fingerprint_of(STAGES[stage], config, inputs))
    launch.run(stage, config, inputs, products.partial(folder), "")


def sweep(stage: str, jobs: Sequence[Composed]) -> None:
    """Runs every job of a sweep as a child of one parent run; a failing job ends the sweep."""
    jobs = [replace(job, config=_check_ahead(stage, job.config)) for job in jobs]
    for job in jobs:
        _check_sources(stage, job.config)

    from pipelines.tracking.run import end_orphans, started
    from pipelines.tracking.store import open_store

    open_store(jobs[0].config.tracking)
    end_orphans()
    with started(f"sweep {stage}", {"stage": "sweep", "sweep.jobs": str(len(jobs))}):
        for number, job in enumerate(jobs, 1):
            say(f"job {number}/{len(jobs)}: {' '.join(job.overrides)}")
            with started(f"job {number}", {"stage": "job", "overrides": " ".join(job.overrides)}):
                _one(stage, job.config)


def _check_ahead(stage: str, config: Config) -> Config:
    """What later stages need beside rows and models is looked at first: training would be in vain without it.

    Returns the configuration with what it leaves to the plan settled.
    """
    stages = config.flow if stage == "finetune" else [stage]
    if config.resume and not {"sft", "distill", "grpo"} & set(stages):
        raise UserError(f"resume: sft, distill and grpo go on from checkpoints, {stage} has none")
    if stage == "finetune" and config.compute.num_nodes > 1:
        raise UserError("compute.num_nodes: finetune runs on one node; start its stages one after the other on all")
    config = _planned(stages, config)
    if set(TRAINING) & set(stages):
        from pipelines.compute.strategy import check_supported

        check_supported(stages, config)
    if {"prepare", "generate", "grpo", "evaluate"} & set(stages):
        from pipelines.verification.precheck import check as check_verifiers

        check_verifiers(config, audited="grpo" in stages)
    if "grpo" in stages:
        from pipelines.rewards.precheck import check as check_rewards

        check_rewards(config)
    if "promote" in stages and stage != "promote":
        from pipelines.release.foresight import check as check_licenses

        check_licenses(config)
    if "distill" in stages:
        from pipelines.policy.precheck import check as check_learning

        check_learning(config)
    if "evaluate" in stages:
        from pipelines.evaluation.precheck import check as check_evaluation

        check_evaluation(config)
    if "export" in stages:
        from pipelines.exporting.precheck import check as check_forms

        check_forms(config)
    return config


def _planned(stages: Sequence[str], config: Config) -> Config:
    """Training that can't fit its card is refused; where plan.auto is set, its batches are chosen."""
    from pipelines.planning.automatic import settled
    from pipelines.planning.preflight import check as check_memory

    config = settled(list(stages), config)
    for name in stages:
        check_memory(name, config)
    return config


def _check_sources(stage: str, config: Config) -> Path | None:
    """Where rows have to be prepared, the pass over their sources comes before everything else.

    Returns the work folder that holds what was read; None where nothing was.
    """
    prepare = STAGES["prepare"]
    if stage not in ("prepare", "finetune") or prepare.module.needs_store(config):
        return None
    with _full_disk_told():
        folder = place(prepare, config, fingerprint_of(prepare, config, {}))
        if config.reuse and (folder / products.MANIFEST).exists():
            return None
        with held(folder):
            work = products.partial(folder)
            prepare.module.check(config, work)
        return work


@contextlib.contextmanager
def _nothing_left(work: Path | None) -> Iterator[None]:
    """Where no run can be opened, what was read for it goes."""
    try:
        yield
    except BaseException:
        if work is not None:
            shutil.rmtree(work)
        raise


def _one(stage: str, config: Config) -> None:
    from pipelines import finetune
    from pipelines.perform import run_stage
    from pipelines.policy.base import pin

    with _full_disk_told():
        if stage in ACTIONS:
            importlib.import_module(f"pipelines.{stage}").act(config)
            return
        if stage not in ("prepare", *ALONE) and not _names_version(stage, config):
            config = config.model_copy(update={"model": pin(config.model)})
        if stage == "finetune":
            _check_teacher(config)
            finetune.run(config)
        else:
            run_stage(STAGES[stage], config, gather(STAGES[stage], config))


def _names_version(stage: str, config: Config) -> bool:
    """Whether the stage works on a version that the registry describes, whatever this configuration's base is."""
    return stage in ("promote", "deploy", "export") and getattr(config, stage).model is not None


def _check_teacher(config: Config) -> None:
    """A flow's teacher is looked for before its student is trained. Raises UserError or Refused as the stages would."""
    if config.teacher.kind is not None and {"generate", "distill"} & set(config.flow):
        from pipelines.policy.base import load_tokenizer
        from pipelines.subjects.teacher import find, scorer

        teacher = find(config)
        if teacher.endpoint is not None and "distill" in config.flow and config.distill.method in SERVED:
            scorer(config, teacher, load_tokenizer(config.model))


@contextlib.contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{error.filename or 'the disk'}: {error.strerror}; free some space and start again"
            ) from None
        raise
