"""Two subjects on the same rows: how large is the difference, and what could it have missed.

Rows are treated as independent draws. The intervals say how the result would vary with other
held-out rows; they do not cover another training seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest

from pipelines.interval import CONFIDENCE, Interval

POWER = 0.8

DEFINITIONS: dict[str, str] = {
    "accuracy_difference": "Accuracy of the adapter minus accuracy of the base on the same in-scope "
    "rows, with the 95 % percentile interval of a paired bootstrap over rows.",
    "mcnemar_p": "Exact two-sided McNemar test: the chance of a split at least this uneven among the "
    "in-scope rows that only one of the two answers right, if both were equally good.",
    "minimum_detectable_difference": "The true difference in accuracy that a test at 5 % would find 80 "
    "times in 100 with this many in-scope rows and this share of rows that only one of the two answers "
    "right. Smaller differences are easily missed.",
    "num_gained": "In-scope rows that the adapter answers right and the base wrong.",
    "num_lost": "In-scope rows that the base answers right and the adapter wrong.",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second subject against the first on the same rows; units as in `DEFINITIONS`."""

    difference: Interval
    mcnemar_p: float
    minimum_detectable_difference: float
    num_gained: int
    num_lost: int

    def metrics(self) -> dict[str, float]:
        return self.difference.metrics("accuracy_difference") | {
            "mcnemar_p": self.mcnemar_p,
            "minimum_detectable_difference": self.minimum_detectable_difference,
            "num_gained": self.num_gained,
            "num_lost": self.num_lost,
        }


def compare(a: Sequence[bool], b: Sequence[bool], resamples: int, seed: int) -> Comparison:
    """`b` against `a`, the verdicts on the same rows in the same order; at least one row."""
    gained, lost = _discordant(a, b)
    return Comparison(
        difference=paired_difference(a, b, resamples, seed),
        mcnemar_p=mcnemar_p(a, b),
        minimum_detectable_difference=minimum_detectable_difference(len(a), (gained + lost) / len(a)),
        num_gained=gained,
        num_lost=lost,
    )


def paired_difference(a: Sequence[bool], b: Sequence[bool], resamples: int, seed: int) -> Interval:
    """mean(b) - mean(a) with its paired bootstrap percentile interval, the same for the same seed.

    Method: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13 (percentile
    interval) and 16; on paired outputs P. Koehn, "Statistical significance tests for machine
    translation evaluation", EMNLP 2004. A row adds +1, 0 or -1, so resampling the n rows is
    drawing the three counts from a multinomial: the same distribution, in memory that doesn't
    grow with n. Where no row differs the interval is [0, 0], which is no proof of equality: see
    `minimum_detectable_difference`.
    """
    num_rows = len(a)
    gained, lost = _discordant(a, b)
    shares = np.array([gained, num_rows - gained - lost, lost]) / num_rows
    counts = np.random.default_rng(seed).multinomial(num_rows, shares, size=resamples)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile((counts[:, 0] - counts[:, 2]) / num_rows, [tail, 1 - tail])
    return Interval((gained - lost) / num_rows, float(low), float(high))


def mcnemar_p(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Two-sided p-value of McNemar's test in its exact form; 1 where no row differs.

    Method: Q. McNemar, Psychometrika 12 (1947); exact binomial form in A. Agresti, "Categorical
    Data Analysis" (2013), section 11.1.
    """
    gained, lost = _discordant(a, b)
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def minimum_detectable_difference(num_rows: int, discordant_share: float) -> float:
    """Smallest true difference found with 80 % power by McNemar's test at 5 %, as a share of 1.

    Method: R. J. Connor, Biometrics 43 (1987), equation for the sample size of paired proportions,
    solved for the difference. A difference d needs at least d of the rows to differ, so the larger
    of d and the observed share counts. 1 where the rows are too few for any difference. The exact
    test is a little more conservative than this normal approximation.
    """
    z_alpha = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2)
    z_power = NormalDist().inv_cdf(POWER)

    def excess(difference: float) -> float:
        discordant = max(difference, discordant_share)
        spread = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)
        return spread - difference * math.sqrt(num_rows)

    if excess(1.0) >= 0:
        return 1.0
    return float(brentq(excess, 1e-9, 1.0))


def _discordant(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int]:
    """Rows that only `b`, and rows that only `a`, has right."""
    pairs = list(zip(a, b, strict=True))
    return sum(y and not x for x, y in pairs), sum(x and not y for x, y in pairs)
