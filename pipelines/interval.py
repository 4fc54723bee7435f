"""A measured value with its 95 % interval.

Rows of one group (an author, a document, a template) resemble one another, so that the group and not the row is
the independent draw. Where groups repeat, the intervals come from resampling whole groups.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from scipy.stats import t as student

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
NEGLIGIBLE = 1.01  # a variance of one per cent more is half a per cent of an interval's width
# Numbers held at a time while resampling: what a processor's cache holds is drawn fastest.
_BLOCK = 200_000
# Of the spread, what all but a few resamples must keep for the studentised bootstrap.
_LEAST_SPREAD = 0.25
# To draw how often one kind of group occurs takes as long as to draw so many groups.
_COUNT_COST = 6

Floats = NDArray[np.float64]
Values = Sequence[float] | Floats


@dataclass(frozen=True, slots=True)
class Interval:
    """A value between the bounds of its 95 % interval; rates and differences are shares of 1.

    `method` says how the bounds were found, where that is known.
    """

    value: float
    low: float
    high: float
    method: str = field(default="", compare=False)

    def metrics(self, name: str) -> dict[str, float]:
        """The three numbers as metrics `name`, `name_low` and `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def wilson(successes: int, trials: int) -> Interval:
    """A rate with its Wilson score interval; `trials` must be at least 1.

    Method: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927); it keeps its coverage for rates near 0 and 1 and for few trials (Brown, Cai and
    DasGupta, Statistical Science 16, 2001, section 4).
    """
    bounds = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    rate = successes / trials
    # Rounding can leave a bound 1e-17 on the wrong side of a rate of 0 or 1.
    return Interval(rate, min(float(bounds.low), rate), max(float(bounds.high), rate), "Wilson score")


def rate(successes: Sequence[bool], groups: Sequence[str] | None, resamples: int, seed: int) -> Interval:
    """The share of successes: Wilson's interval where rows count as independent, else `bootstrap_outcomes`."""
    if not are_shared(groups):
        return wilson(sum(successes), len(successes))
    return bootstrap_outcomes(successes, groups, resamples, seed)


def bootstrap_outcomes(
    outcomes: Values, groups: Sequence[str] | None, resamples: int, seed: int, lowest: float = 0.0
) -> Interval:
    """The mean of verdicts (0 or 1), or of their differences (-1, 0 or 1, with `lowest` -1), over all rows.

    Method: percentile bootstrap over groups (A. C. Cameron, J. Gelbach and D. Miller, "Bootstrap-based improvements
    for inference with clustered errors", 2008; A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their
    Application", 1997, section 3.8), with the tails of T. Hesterberg, "What teachers should know about the
    bootstrap" (2015), section 5: those of Student's t, because a resample of n groups varies too little by
    (n - 1)/n. Few and rare outcomes leave resamples in which none occurs, and intervals that are too narrow; so they
    are drawn from the groups and, of a mean group's size, half a group at each end of the range and one in its
    middle, which is what A. Agresti and Y. Min, Statistics in Medicine 24 (2005), add to pairs of proportions.
    `groups` None: every row is one. Raises ValueError without a row.
    """
    sums, sizes = group_sums(outcomes, groups)
    number, size = len(sums), sizes.mean()
    added = np.array([lowest, 1.0, (lowest + 1.0) / 2]) * size
    weights = np.concatenate([np.full(number, 2), [1, 1, 2]])
    totals = _resampled(np.append(sums, added), np.append(sizes, [size] * 3), weights, (resamples, number), seed)
    tail = _wide_tail(number)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [tail, 1 - tail])
    value = float(sums.sum() / sizes.sum())
    return Interval(value, min(float(low), value), max(float(high), value), f"bootstrap over {unit(groups)}")


def bootstrap_mean(
    values: Values,
    groups: Sequence[str] | None,
    resamples: int,
    seed: int,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """The mean over all rows with its studentised bootstrap interval, groups resampled whole.

    Method: Davison and Hinkley (1997), sections 2.4 and 5.2 (studentised, or bootstrap-t; on skewed values it keeps
    its coverage better than percentiles do) on the ratio of the groups' sums to their sizes, its variance by
    linearisation (W. G. Cochran, "Sampling Techniques", 1977, section 6.3); with one row a group this is the mean
    and its usual variance. Where the spread rests on so few rows that some resamples miss them all, and dividing by
    what is left would blow up the interval, percentiles are taken, with the tails of `bootstrap_outcomes`.

    `bounds` are the least and the greatest value a row can have: the interval stays within. Where all groups are
    alike, resampling says nothing: with bounds, the share of groups that may differ is bounded as C. Clopper and
    E. Pearson (1934) do and these are taken to lie at a bound; without, low and high are the value. Below some 20
    groups all bootstraps are too narrow. `groups` None: every row is one. Raises ValueError without a row.
    """
    sums, sizes = group_sums(values, groups)
    value = float(sums.sum() / sizes.sum())
    error = standard_error(sums, sizes)
    if error <= 1e-12 * abs(value):
        return _alike(value, len(sums), bounds)
    # Of deviations from the mean, whose squares don't cancel to rounding where the values are large and close.
    weights = np.ones(len(sums), dtype=np.int64)
    totals = _resampled(sums - value * sizes, sizes, weights, (resamples, len(sums)), seed)
    shifts = totals[:, 0] / totals[:, 1]
    squares = totals[:, 2] - 2 * shifts * totals[:, 3] + shifts**2 * totals[:, 4]
    errors = np.sqrt(np.maximum(squares, 0) * len(sums) / (len(sums) - 1)) / totals[:, 1]
    if float(np.quantile(errors, TAIL)) > _LEAST_SPREAD * error:
        # The few without any spread get one, so as not to divide by 0; the quantiles don't reach so far.
        low, high = value - error * np.quantile(shifts / np.maximum(errors, 1e-9 * error), [1 - TAIL, TAIL])
    else:
        tail = _wide_tail(len(sums))
        low, high = value + np.quantile(shifts, [tail, 1 - tail])
    least, most = bounds or (-math.inf, math.inf)
    low, high = max(min(float(low), value), least), min(max(float(high), value), most)
    return Interval(value, low, high, f"bootstrap over {unit(groups)}")


def group_sums(values: Values, groups: Sequence[str] | None) -> tuple[Floats, Floats]:
    """Each group's sum of values and its number of rows; the groups in the order of their names.

    Raises ValueError where there is no row, or not one group a row.
    """
    given = np.asarray(values, dtype=np.float64)
    if not given.size:
        raise ValueError("no row to take a mean of")
    if groups is None:
        return given, np.ones(len(given))
    if len(groups) != len(given):
        raise ValueError(f"expected one group a row: {len(given)} rows, got {len(groups)} groups")
    _, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.bincount(member, weights=given).astype(np.float64), np.bincount(member).astype(np.float64)


def standard_error(sums: Floats, sizes: Floats) -> float:
    """Of the mean over all rows, groups being the independent draws; 0 where there is one group alone."""
    if len(sums) < 2:
        return 0.0
    residuals = sums - sizes * (sums.sum() / sizes.sum())
    return float(np.sqrt((residuals**2).sum() * len(sums) / (len(sums) - 1)) / sizes.sum())


def are_shared(groups: Sequence[str] | None) -> bool:
    """Whether rows share groups so much that it can matter.

    Rows of one group that are all alike raise the variance of a mean by at most the sum of the groups' squared sizes
    over the number of rows (L. Kish, "Survey Sampling", 1965, section 5.4). Up to `NEGLIGIBLE` they count as
    independent.
    """
    if not groups:
        return False
    return sum(size * size for size in Counter(groups).values()) / len(groups) > NEGLIGIBLE


def unit(groups: Sequence[str] | None) -> str:
    """What is resampled, in a word."""
    return "groups" if are_shared(groups) else "rows"


def _wide_tail(number: int) -> float:
    """The share of resamples to leave out on either side, as Hesterberg (2015) has it for so many draws."""
    if number < 2:
        return 0.0
    return float(norm.cdf(-math.sqrt(number / (number - 1)) * student.ppf(1 - TAIL, number - 1)))


def _alike(value: float, number: int, bounds: tuple[float, float] | None) -> Interval:
    if bounds is None:
        return Interval(value, value, value, "none: all alike")
    share = 1 - TAIL ** (1 / number)
    low, high = value - share * (value - bounds[0]), value + share * (bounds[1] - value)
    return Interval(value, low, high, "exact bound, all being alike")


def _resampled(sums: Floats, sizes: Floats, weights: NDArray[np.int64], shape: tuple[int, int], seed: int) -> Floats:
    """Totals of `shape` (resamples, draws): of sums, sizes, sums squared, sums x sizes and sizes squared.

    Groups that are the same in sum and size are one kind, so that the order of rows doesn't matter. The chance of
    a group goes by its weight.
    """
    kinds, member = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_inverse=True)
    counts = np.bincount(member.ravel(), weights=weights)
    draw = np.random.default_rng(seed)
    if _COUNT_COST * len(kinds) > shape[1]:
        return _picked(kinds, counts.astype(np.int64), shape, draw)
    held, size = kinds[:, 0], kinds[:, 1]
    columns = np.stack([held, size, held**2, held * size, size**2], axis=1)
    step = max(1, _BLOCK // len(kinds))
    return np.concatenate(
        [
            draw.multinomial(shape[1], counts / counts.sum(), size=min(step, shape[0] - done)) @ columns
            for done in range(0, shape[0], step)
        ]
    )


def _picked(kinds: Floats, counts: NDArray[np.int64], shape: tuple[int, int], draw: np.random.Generator) -> Floats:
    """`_resampled` where there are many kinds: group by group, a block of resamples at a time."""
    all_sums, all_sizes = np.repeat(kinds[:, 0], counts), np.repeat(kinds[:, 1], counts)
    one_size = float(all_sizes[0]) if (all_sizes == all_sizes[0]).all() else None
    found = np.empty((shape[0], 5))
    step = max(1, _BLOCK // shape[1])
    for done in range(0, shape[0], step):
        part = found[done : done + step]
        picks = draw.integers(0, len(all_sums), size=(len(part), shape[1]), dtype=np.int32)
        sums = all_sums.take(picks)
        part[:, 0], part[:, 2] = sums.sum(axis=1), np.einsum("ij,ij->i", sums, sums)
        if one_size is not None:
            part[:, 1], part[:, 3], part[:, 4] = shape[1] * one_size, one_size * part[:, 0], shape[1] * one_size**2
            continue
        sizes = all_sizes.take(picks)
        part[:, 1], part[:, 3] = sizes.sum(axis=1), np.einsum("ij,ij->i", sums, sizes)
        part[:, 4] = np.einsum("ij,ij->i", sizes, sizes)
    return found
