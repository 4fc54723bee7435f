"""`key=a,b` on the command line -> every combination, as Hydra's own basic sweeper makes them."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

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
