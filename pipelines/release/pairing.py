"""Two versions on the same held-out rows: how much better one is, by a paired interval."""

from pipelines.evaluation.compare import compare_verdicts
from pipelines.release.evidence import Evidence

SEED = 0  # the same two versions are always compared by the same resamples


class Unpaired(Exception):
    """Two versions can't be compared row by row; the message says why."""


def lower_end(incumbent: Evidence, version: Evidence, resamples: int) -> float:
    """The lower end of the 95 % interval of accuracy, the version's minus the incumbent's; a share of 1.

    Over all held-out rows that both have a verdict on, those out of scope included. Raises Unpaired where they were
    judged on other rows, or where either's verdicts aren't there.
    """
    if not version.heldout or not incumbent.heldout:
        raise Unpaired(f"no heldout.digest of {incumbent.uri if version.heldout else version.uri}")
    if version.heldout != incumbent.heldout:
        raise Unpaired(f"other held-out rows ({incumbent.heldout[:12]}, this one's {version.heldout[:12]})")
    before, after = incumbent.verdicts, version.verdicts
    if before is None or after is None:
        raise Unpaired(f"no verdicts of {version.uri if after is None else incumbent.uri}")
    rows = sorted(before.keys() & after.keys())
    if not rows:
        raise Unpaired("no row that both have a verdict on")
    groups = [after[row][0] or row for row in rows]
    told = [before[row][1] for row in rows], [after[row][1] for row in rows]
    return compare_verdicts(*told, groups, resamples, SEED).difference.low
