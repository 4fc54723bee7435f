"""How often the 95 % intervals of `pipelines/interval.py` hold the truth: `python -m benchmarks.evaluation_coverage`.

Each figure is the share, of a thousand simulated held-out sets whose truth is known, of intervals that hold it. What
the sets are like (rows, rates, groups) is drawn anew for each within the ranges that users meet: at one size and one
rate the coverage of any interval for counts swings by some points (Brown, Cai and DasGupta 2001), and a single
choice could hide that or overstate it.
"""

import json
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.compare import paired_difference
from pipelines.interval import Interval, bootstrap_mean, rate

SETS = 1_000
RESAMPLES = 1_000
SEED = 0

Simulate = Callable[[np.random.Generator], tuple[Interval, float]]


def wilson_rate(draw: np.random.Generator) -> tuple[Interval, float]:
    """Verdicts of 50 to 1,000 independent rows, right with a chance of 50 to 98 %."""
    rows, truth = int(draw.integers(50, 1001)), draw.uniform(0.5, 0.98)
    return rate(list(draw.random(rows) < truth), None, RESAMPLES, _seed(draw)), truth


def verdict_difference(draw: np.random.Generator) -> tuple[Interval, float]:
    """Two subjects on 100 to 1,000 independent rows; 5 to 40 % differ, of these 30 to 90 % for the candidate."""
    rows = int(draw.integers(100, 1001))
    chances, truth = _discordance(draw)
    a, b = _verdicts(draw.choice(3, size=rows, p=chances), draw)
    return paired_difference(a, b, None, RESAMPLES, _seed(draw)), truth


def skewed_mean(draw: np.random.Generator) -> tuple[Interval, float]:
    """Log-normal values (sigma 1: skewness 6.2), as tokens, seconds and costs are; 100 to 1,000 independent rows."""
    values = draw.lognormal(0.0, 1.0, size=int(draw.integers(100, 1001)))
    return bootstrap_mean(values, None, RESAMPLES, _seed(draw)), float(np.exp(0.5))


def score_mean(draw: np.random.Generator) -> tuple[Interval, float]:
    """Scores as token F1 gives them: 5 to 30 % are 0, as many 1, the rest between; 100 to 1,000 independent rows."""
    end = draw.uniform(0.05, 0.3)
    values = _scores(draw, np.full(int(draw.integers(100, 1001)), 0.7), end)
    return bootstrap_mean(values, None, RESAMPLES, _seed(draw), (0.0, 1.0)), end + 0.7 * (1 - 2 * end)


def clustered_rate(draw: np.random.Generator) -> tuple[Interval, float]:
    """Verdicts in 40 to 200 groups of 1 to some 30 rows, 50 to 95 % right, correlated by 0.1 to 0.5 in a group."""
    verdicts, groups, truth = _grouped_verdicts(draw)
    return rate(verdicts, groups, RESAMPLES, _seed(draw)), truth


def clustered_rate_naive(draw: np.random.Generator) -> tuple[Interval, float]:
    """The same verdicts with their rows taken for independent."""
    verdicts, _, truth = _grouped_verdicts(draw)
    return rate(verdicts, None, RESAMPLES, _seed(draw)), truth


def clustered_difference(draw: np.random.Generator) -> tuple[Interval, float]:
    """Two subjects' verdicts in such groups; differences as in `verdict_difference`."""
    a, b, groups, truth = _grouped_pairs(draw)
    return paired_difference(a, b, groups, RESAMPLES, _seed(draw)), truth


def clustered_difference_naive(draw: np.random.Generator) -> tuple[Interval, float]:
    """The same pairs with their rows taken for independent."""
    a, b, _, truth = _grouped_pairs(draw)
    return paired_difference(a, b, None, RESAMPLES, _seed(draw)), truth


def clustered_score_difference(draw: np.random.Generator) -> tuple[Interval, float]:
    """Differences of two subjects' scores in such groups, half of the variance between groups (sigma 0.1 and 0.1)."""
    sizes, groups = _groups(draw)
    gains = draw.normal(0.05, 0.1, size=len(sizes)).repeat(sizes)
    return bootstrap_mean(gains + draw.normal(0.0, 0.1, size=len(gains)), groups, RESAMPLES, _seed(draw)), 0.05


def clustered_skewed_mean(draw: np.random.Generator) -> tuple[Interval, float]:
    """Log-normal values in such groups, half of the logarithms' variance between groups (sigma 0.5 and 0.5)."""
    sizes, groups = _groups(draw)
    logarithms = draw.normal(0.0, 0.5, size=len(sizes)).repeat(sizes) + draw.normal(0.0, 0.5, size=int(sizes.sum()))
    return bootstrap_mean(np.exp(logarithms), groups, RESAMPLES, _seed(draw)), float(np.exp(0.25))


SCENARIOS: dict[str, Simulate] = {
    found.__name__: found
    for found in (
        wilson_rate,
        verdict_difference,
        skewed_mean,
        score_mean,
        clustered_rate,
        clustered_difference,
        clustered_score_difference,
        clustered_skewed_mean,
        clustered_rate_naive,
        clustered_difference_naive,
    )
}


def coverage() -> dict[str, float]:
    """The share of intervals that hold the truth, by scenario; of 1,000 sets it is itself exact to some 1.4 points."""
    return {name: _share(simulate) for name, simulate in SCENARIOS.items()}


def _share(simulate: Simulate) -> float:
    draw = np.random.default_rng(SEED)
    held = 0
    for _ in range(SETS):
        interval, truth = simulate(draw)
        held += interval.low <= truth <= interval.high
    return held / SETS


def _seed(draw: np.random.Generator) -> int:
    return int(draw.integers(2**31))


def _discordance(draw: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """Chances that a row is lost, alike, gained; and the true difference."""
    differing, gained = draw.uniform(0.05, 0.4), draw.uniform(0.3, 0.9)
    return np.array([differing * (1 - gained), 1 - differing, differing * gained]), differing * (2 * gained - 1)


def _verdicts(kinds: NDArray[np.int64], draw: np.random.Generator) -> tuple[list[bool], list[bool]]:
    """Both subjects' verdicts of rows lost (0), alike (1) and gained (2)."""
    right = draw.random(len(kinds)) < 0.7
    a, b = np.where(kinds == 1, right, kinds == 0), np.where(kinds == 1, right, kinds == 2)
    return list(a), list(b)


def _groups(draw: np.random.Generator) -> tuple[NDArray[np.int64], list[str]]:
    """Sizes of 40 to 200 groups, 1 to some 30 rows and 6 on average, and each row's group."""
    sizes = 1 + draw.negative_binomial(1, 1 / 6, size=int(draw.integers(40, 201)))
    return sizes, [str(group) for group in np.arange(len(sizes)).repeat(sizes)]


def _grouped_verdicts(draw: np.random.Generator) -> tuple[list[bool], list[str], float]:
    """Beta-binomial: a group's own rate has the truth as its mean, and verdicts in it the correlation drawn."""
    sizes, groups = _groups(draw)
    truth, correlation = draw.uniform(0.5, 0.95), draw.uniform(0.1, 0.5)
    spread = 1 / correlation - 1
    rates = draw.beta(truth * spread, (1 - truth) * spread, size=len(sizes)).repeat(sizes)
    return list(draw.random(len(rates)) < rates), groups, truth


def _grouped_pairs(draw: np.random.Generator) -> tuple[list[bool], list[bool], list[str], float]:
    sizes, groups = _groups(draw)
    chances, truth = _discordance(draw)
    spread = 1 / draw.uniform(0.1, 0.5) - 1
    own = draw.dirichlet(chances * spread, size=len(sizes)).repeat(sizes, axis=0)
    kinds = (draw.random(len(own))[:, None] > own.cumsum(axis=1)[:, :2]).sum(axis=1)
    return *_verdicts(kinds, draw), groups, truth


def _scores(draw: np.random.Generator, centres: NDArray[np.float64], end: float) -> NDArray[np.float64]:
    """Scores of which a share `end` is 0, as many are 1, and the rest has the mean `centres`."""
    between = draw.beta(4 * centres, 4 * (1 - centres))
    kinds = draw.random(len(centres))
    return np.where(kinds < end, 0.0, np.where(kinds < 2 * end, 1.0, between))


if __name__ == "__main__":
    figures = coverage()
    for name, share in figures.items():
        sys.stdout.write(f"{name:30} {100 * share:5.1f} %  {(SCENARIOS[name].__doc__ or '').splitlines()[0]}\n")
    sys.stdout.write(json.dumps(figures) + "\n")
