"""`key=a,b` on the command line -> every combination, as Hydra's basic sweeper makes them, or what a plugin makes."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import hydra.version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup

from pipelines.config.compose import completed
from pipelines.config.paths import CONF, PROJECT
from pipelines.errors import UserError


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """One list of overrides a job. Raises UserError where nothing varies."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    except HydraException as error:
        raise UserError(f"--multirun: {' '.join(str(error).split())}") from None
    if len(jobs) < 2:
        raise UserError("--multirun: no override varies; expected key=a,b or key=range(1,4)")
    return [list(job) for job in jobs]


def uses_plugins(overrides: Sequence[str]) -> bool:
    """Whether a sweeper or a launcher of Hydra's is chosen, such as hydra/launcher=joblib."""
    return any(text.lstrip("+").startswith("hydra/") for text in overrides)


def by_plugins(overrides: Sequence[str], job: Callable[[list[str]], float | None]) -> None:
    """Sweeps with the chosen sweeper and launcher, which call `job` with each combination, wherever they do.

    What `job` returns is what a sweeper that optimises is told. Raises UserError where Hydra refuses an override.
    """
    hydra.version.setbase("1.3")
    silent = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    placed = [f"hydra.sweep.dir={PROJECT}/outputs/sweep/${{now:%Y-%m-%d-%H-%M-%S}}"]
    if any(text.startswith("hydra.sweep.dir=") for text in overrides):
        placed = []
    GlobalHydra.instance().clear()
    _silence()
    try:
        sweeping = Hydra.create_main_hydra2("tunesmith", create_config_search_path(str(CONF)))
        sweeping.multirun(
            "config",
            partial(_carry_out, job),
            [*silent, *placed, *map(completed, overrides)],
            with_log_configuration=False,
        )
    except HydraException as error:
        raise UserError(f"--multirun: {' '.join(str(error).split())}") from None
    finally:
        GlobalHydra.instance().clear()


def _carry_out(job: Callable[[list[str]], float | None], cfg: Any) -> float | None:
    task = list(HydraConfig.get().overrides.task)
    sweeping = get_gh_backup()
    GlobalHydra.instance().clear()  # the job composes its own configuration
    try:
        return job(task)
    finally:
        restore_gh_from_backup(sweeping)


def _silence() -> None:
    """Optuna has a log of its own, in colours."""
    with contextlib.suppress(ImportError):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
