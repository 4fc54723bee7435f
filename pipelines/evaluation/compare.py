"""Two subjects on the same rows: how large is the difference, and what could it have missed.

Rows are independent draws, or, where groups have several, the groups are. The intervals say how the result would
vary with other held-out rows; they do not cover another training seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest

from pipelines.interval import (
    CONFIDENCE,
    Floats,
    Interval,
    Values,
    are_shared,
    bootstrap_mean,
    bootstrap_outcomes,
    group_sums,
    standard_error,
    unit,
)

POWER = 0.8
MCNEMAR = "McNemar, exact"
_BLOCK = 200_000
# With so few different sizes of difference, the number of those that turn is drawn at once.
_FEW = 256

DEFINITIONS: dict[str, str] = {
    "difference": "A metric of the candidate minus that of the other subject on the same rows, with the 95 % interval "
    "of a paired bootstrap over rows, or over groups where rows share one: of verdicts by percentiles, half a row "
    "won, half a row lost and one alike added (Agresti and Min 2005), of other metrics studentised (Davison and "
    "Hinkley 1997). It says how the difference would vary with other rows, not with another training seed.",
    "difference_p": "The chance of a difference at least this large if both subjects were equally good. Of verdicts "
    "the exact two-sided McNemar test (Agresti 2013, section 11.1); of other metrics, and of verdicts on rows that "
    "share groups, where rows aren't independent as McNemar needs them, the permutation test that swaps the two "
    "subjects in each row or group at random (Good 2005, section 3.7).",
    "difference_detectable": "The true difference that a test at 5 % would find 80 times in 100 with this many rows "
    "and differences that scatter as these do; groups of rows count by their design effect. Smaller differences are "
    "easily missed.",
    "difference_gained": "Rows of which the metric is true for the candidate alone; of accuracy, those that it answers "
    "right and the other subject wrong.",
    "difference_lost": "Rows of which the metric is true for the other subject alone.",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second subject against the first in one metric on the same rows; units as in `DEFINITIONS`.

    `p_method` names the test. `minimum_detectable_difference` is None where the rows don't say how differences
    scatter, `num_gained` and `num_lost` are None where the metric isn't a verdict.
    """

    difference: Interval
    p: float
    p_method: str
    minimum_detectable_difference: float | None
    num_gained: int | None
    num_lost: int | None
    num_rows: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """`prefix` is the difference; _low, _high, _p, _detectable, _gained and _lost as far as there are any."""
        optional = {
            "detectable": self.minimum_detectable_difference,
            "gained": self.num_gained,
            "lost": self.num_lost,
        }
        found = {f"{prefix}_{name}": float(value) for name, value in optional.items() if value is not None}
        return self.difference.metrics(prefix) | {f"{prefix}_p": self.p} | found


def compare_verdicts(
    a: Sequence[bool], b: Sequence[bool], groups: Sequence[str] | None, resamples: int, seed: int
) -> Comparison:
    """`b` against `a`, the verdicts on the same rows in the same order; raises ValueError without a row."""
    gained, lost = _discordant(a, b)
    steps = _differences(a, b)
    shared = are_shared(groups)
    independent = len(a) / design_effect(steps, groups)
    return Comparison(
        difference=paired_difference(a, b, groups, resamples, seed),
        p=sign_flip_p(steps, groups, resamples, seed) if shared else mcnemar_p(a, b),
        p_method="sign flips of groups" if shared else MCNEMAR,
        minimum_detectable_difference=minimum_detectable_difference(independent, (gained + lost) / len(a)),
        num_gained=gained,
        num_lost=lost,
        num_rows=len(a),
    )


def compare_values(
    a: Sequence[float],
    b: Sequence[float],
    groups: Sequence[str] | None,
    resamples: int,
    seed: int,
    bounds: tuple[float, float] | None = None,
) -> Comparison:
    """`b` against `a`, a metric's values on the same rows in the same order; raises ValueError without a row.

    `bounds` are the metric's own, such as (0, 1); None where it has none.
    """
    steps = _differences(a, b)
    reach = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    return Comparison(
        difference=bootstrap_mean(steps, groups, resamples, seed, reach),
        p=sign_flip_p(steps, groups, resamples, seed),
        p_method=f"sign flips of {unit(groups)}",
        minimum_detectable_difference=detectable_mean(steps, groups),
        num_gained=None,
        num_lost=None,
        num_rows=len(steps),
    )


def paired_difference(
    a: Sequence[bool], b: Sequence[bool], groups: Sequence[str] | None, resamples: int, seed: int
) -> Interval:
    """mean(b) - mean(a) of verdicts with its paired bootstrap interval, the same for the same seed.

    Method: `pipelines.interval.bootstrap_outcomes` on what each row adds, +1, 0 or -1; on paired outputs P. Koehn,
    "Statistical significance tests for machine translation evaluation", EMNLP 2004. Where no row differs the
    interval still has a width, that of the rows which might.
    """
    return bootstrap_outcomes(_differences(a, b), groups, resamples, seed, lowest=-1.0)


def mcnemar_p(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Two-sided p-value of McNemar's test in its exact form; 1 where no row differs.

    Method: Q. McNemar, Psychometrika 12 (1947); exact binomial form in A. Agresti, "Categorical
    Data Analysis" (2013), section 11.1. It takes rows for independent: where groups have several, see `sign_flip_p`.
    """
    gained, lost = _discordant(a, b)
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def sign_flip_p(differences: Values, groups: Sequence[str] | None, resamples: int, seed: int) -> float:
    """Two-sided p-value of the permutation test on paired differences; 1 where none differs.

    If both subjects were equally good, a group's sum of differences could as well have the other sign. All ways of
    turning them are counted where there are at most `resamples`; else so many are drawn, and the observed one counts
    as one of them (B. Phipson and G. Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010).
    Method: R. A. Fisher, "The Design of Experiments" (1935), section 21; P. Good, "Permutation, Parametric, and
    Bootstrap Tests of Hypotheses" (2005), section 3.7.
    """
    sums, _ = group_sums(differences, groups)
    sizes = np.sort(np.abs(sums[sums != 0]))
    if not sizes.size:
        return 1.0
    # Sums that are equal on paper differ by rounding.
    observed = abs(float(sums.sum())) - 1e-9 * float(sizes.sum())
    if len(sizes) < 31 and 2 ** len(sizes) <= resamples:
        turned = np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1
        return float(np.mean(np.abs((1 - 2 * turned) @ sizes) >= observed))
    extreme = int(np.sum(np.abs(_flipped(sizes, resamples, seed)) >= observed))
    return (1 + extreme) / (1 + resamples)


def _flipped(sizes: Floats, resamples: int, seed: int) -> Floats:
    """Sums of `sizes` with signs drawn at random, one a resample."""
    draw = np.random.default_rng(seed)
    different, counts = np.unique(sizes, return_counts=True)
    if len(different) <= _FEW:
        return (2.0 * draw.binomial(counts, 0.5, size=(resamples, len(counts))) - counts) @ different
    step = max(1, _BLOCK // len(sizes))
    blocks = [min(step, resamples - done) for done in range(0, resamples, step)]
    return np.concatenate(
        [(2.0 * draw.integers(0, 2, size=(rows, len(sizes)), dtype=np.int8) - 1) @ sizes for rows in blocks]
    )


def minimum_detectable_difference(num_rows: float, discordant_share: float) -> float:
    """Smallest true difference found with 80 % power by McNemar's test at 5 %, as a share of 1.

    Method: R. J. Connor, Biometrics 43 (1987), equation for the sample size of paired proportions,
    solved for the difference. A difference d needs at least d of the rows to differ, so the larger
    of d and the observed share counts. 1 where the rows are too few for any difference. The exact
    test is a little more conservative than this normal approximation. Of rows in groups, `num_rows` is how many
    independent rows they are worth: their number over the design effect.
    """
    z_alpha, z_power = _quantiles()

    def excess(difference: float) -> float:
        discordant = max(difference, discordant_share)
        spread = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)
        return spread - difference * math.sqrt(num_rows)

    if excess(1.0) >= 0:
        return 1.0
    return float(brentq(excess, 1e-9, 1.0))


def detectable_mean(differences: Values, groups: Sequence[str] | None) -> float | None:
    """Smallest true mean difference found with 80 % power by a test at 5 %, in the metric's unit.

    (z_0.975 + z_0.8) standard errors of the mean difference (J. Cohen, "Statistical Power Analysis", 1988, ch. 2),
    which with groups is the usual one times the root of the design effect. None where all rows differ alike.
    """
    sums, sizes = group_sums(differences, None)
    error = standard_error(sums, sizes)
    if error <= 1e-12 * abs(float(sums.mean())):
        return None
    return sum(_quantiles()) * error * math.sqrt(design_effect(differences, groups))


def design_effect(differences: Values, groups: Sequence[str] | None) -> float:
    """By how much groups raise the variance of the mean over that of as many independent rows; at least 1.

    Method: L. Kish, "Survey Sampling" (1965), section 8.2, as the ratio of the two estimated variances. An estimate
    below 1 is taken for chance, and the rows of one single group are worth one row.
    """
    if not are_shared(groups):
        return 1.0
    if len(set(groups or ())) == 1:
        return float(len(differences))
    alone, together = standard_error(*group_sums(differences, None)), standard_error(*group_sums(differences, groups))
    return max(1.0, (together / alone) ** 2) if alone else 1.0


def _quantiles() -> tuple[float, float]:
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2), NormalDist().inv_cdf(POWER)


def _differences(a: Sequence[float], b: Sequence[float]) -> Floats:
    if len(a) != len(b):
        raise ValueError(f"expected the same rows: {len(a)} of one subject, {len(b)} of the other")
    return np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)


def _discordant(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int]:
    """Rows that only `b`, and rows that only `a`, has right."""
    pairs = list(zip(a, b, strict=True))
    return sum(y and not x for x, y in pairs), sum(x and not y for x, y in pairs)
