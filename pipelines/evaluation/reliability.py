"""What one subject's confidences are worth: its reliability diagram, selective accuracy and calibration metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation import calibration
from pipelines.evaluation.calibration import Bin
from pipelines.evaluation.measure import Measure, plain
from pipelines.interval import Interval, rate

SUITE = "calibration"
OF = "with a confidence"
# What a temperature is there to mend; the others go by the order of confidences.
MENDED = ("ece", "ece_by_chance", "ece_mass", "brier")
SCORES = ("brier", "auroc", "aurc")


DEFINITIONS: dict[str, str] = {
    **calibration.DEFINITIONS,
    "..._calibrated": "The same of the confidences after the temperature.",
}


@dataclass(frozen=True, slots=True)
class Sure:
    """Rows with a confidence as it was told and after the temperature, the verdicts, and the rows' groups."""

    told: Sequence[float]
    calibrated: Sequence[float]
    verdicts: Sequence[bool]
    groups: Sequence[str]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of as many rows each, `before` and `after` the temperature (empty without one), and the metrics.

    `curve` is (coverage, accuracy) of the rows that it was surest of, by the confidences as they were told.
    """

    before: list[Bin]
    after: list[Bin]
    curve: list[tuple[float, float]]
    measures: list[Measure]
    num_rows: int


def reliability(sure: Sure, temperature: float | None, bins: int, resamples: int, seed: int) -> Reliability:
    """Measures the confidences; those after the temperature as `NAME_calibrated`. Raises ValueError without a row."""
    verdicts, groups = list(sure.verdicts), list(sure.groups)
    found = calibration.measures(sure.told, verdicts, groups, bins, resamples, seed)
    after: list[Bin] = []
    measures = [_measure(name, interval, len(verdicts)) for name, interval in found.items()]
    if temperature is not None:
        after = by_mass(sure.calibrated, sure, bins, resamples, seed)
        mended = calibration.measures(sure.calibrated, verdicts, groups, bins, resamples, seed)
        measures += [_measure(f"{name}_calibrated", mended[name], len(verdicts)) for name in MENDED]
        measures.append(plain(SUITE, "temperature", temperature, len(verdicts), OF, "score"))
    return Reliability(
        before=by_mass(sure.told, sure, bins, resamples, seed),
        after=after,
        curve=calibration.selective(sure.told, verdicts),
        measures=measures,
        num_rows=len(verdicts),
    )


def by_mass(confidences: Sequence[float], sure: Sure, bins: int, resamples: int, seed: int) -> list[Bin]:
    """The bins of `ece_mass`, least confident first: as equal in rows as can be, rows of one confidence together.

    `low` and `high` are the least and the greatest confidence in a bin. Method: K. Nguyen and B. O'Connor, EMNLP
    2015, section 3: bins of equal width are mostly empty where a subject is sure of nearly everything.
    """
    given = np.asarray(confidences, dtype=np.float64)
    _, member, sizes = np.unique(-given, return_inverse=True, return_counts=True)
    middles = sizes.cumsum() - (sizes + 1) / 2
    bin_of = (middles * min(bins, len(given)) / len(given)).astype(np.int64)[member]
    found = []
    for number in np.unique(bin_of)[::-1]:
        rows = np.flatnonzero(bin_of == number).tolist()
        accuracy = rate([sure.verdicts[row] for row in rows], [sure.groups[row] for row in rows], resamples, seed)
        inside = given[rows]
        found.append(Bin(float(inside.min()), float(inside.max()), float(inside.mean()), accuracy, len(rows)))
    return found


def _measure(name: str, found: Interval, num_rows: int) -> Measure:
    unit = "score" if name.removesuffix("_calibrated") in SCORES else "share"
    return Measure(SUITE, name, found.value, found.low, found.high, num_rows, OF, unit)  # type: ignore[arg-type]
