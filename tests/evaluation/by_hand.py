"""The statistics of the report a second time, in plain numpy: other code, the same definitions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import bisect
from scipy.stats import binom, norm, t

RESAMPLES = 4000
Z = 1.959963984540054


@dataclass(frozen=True)
class Number:
    """A number that a page has to show, and how far a resampling of another seed may lie from it."""

    value: float
    tolerance: float = 0.0


@dataclass(frozen=True)
class Bounded:
    """A value with its bounds."""

    value: Number
    low: Number
    high: Number


def wilson(right: int, total: int) -> Bounded:
    share, square = right / total, Z * Z / total
    middle = (share + square / 2) / (1 + square)
    reach = Z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return Bounded(Number(share), Number(max(middle - reach, 0.0)), Number(min(middle + reach, 1.0)))


def summed(values: Sequence[float], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Each group's sum and size."""
    found: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        found.setdefault(group, []).append(value)
    return np.array([sum(held) for held in found.values()]), np.array([float(len(held)) for held in found.values()])


def share(verdicts: Sequence[float], groups: Sequence[str]) -> Bounded:
    """Of rows that are their own groups Wilson's, else by resampling groups."""
    if len(set(groups)) == len(groups):
        return wilson(round(sum(verdicts)), len(verdicts))
    return outcomes(verdicts, groups, 0.0)


def outcomes(values: Sequence[float], groups: Sequence[str], lowest: float) -> Bounded:
    """Percentiles of resampled groups, to which half a group at each end of the range and one in the middle come."""
    sums, sizes = summed(values, groups)
    number, size = len(sums), sizes.mean()
    pool = [(s, n) for s, n in zip(sums, sizes, strict=True) for _ in range(2)]
    pool += [(lowest * size, size), (size, size)] + [((lowest + 1) / 2 * size, size)] * 2
    drawn = np.array(pool)[np.random.default_rng(99).integers(0, len(pool), size=(RESAMPLES, number))]
    means = drawn[:, :, 0].sum(axis=1) / drawn[:, :, 1].sum(axis=1)
    tail = norm.cdf(-math.sqrt(number / (number - 1)) * t.ppf(0.975, number - 1))
    value = sums.sum() / sizes.sum()
    return _percentiles(value, means, tail, 1 / sizes.sum())


def _percentiles(value: float, drawn: np.ndarray, tail: float, step: float) -> Bounded:
    """Resamples of verdicts move by whole rows, so that a quantile may be a `step` off."""
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Bounded(
        Number(value),
        Number(min(low, value), chance(drawn, tail) + step),
        Number(max(high, value), chance(drawn, 1 - tail) + step),
    )


def chance(drawn: np.ndarray, at: float) -> float:
    """Four standard errors of the difference between two estimates of a quantile, this one and the project's.

    The variance of a sample quantile is q (1 - q) / (n f^2), with the density f by what lies about it.
    """
    about = 0.6 * min(at, 1 - at)
    width = np.quantile(drawn, at + about) - np.quantile(drawn, at - about)
    return float(4 * math.sqrt(at * (1 - at) * (1 / len(drawn) + 1 / RESAMPLES)) * width / (2 * about))


def deviation(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Standard error of the mean over all rows, groups being drawn."""
    return float(_deviations(sums[None, :], sizes[None, :])[0])


def _deviations(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The same of many samples, one a line."""
    total, number = sizes.sum(axis=1), sums.shape[1]
    rest = sums - sizes * (sums.sum(axis=1) / total)[:, None]
    return np.asarray(np.sqrt((rest**2).sum(axis=1) * number / (number - 1)) / total)


def mean(values: Sequence[float], groups: Sequence[str], least: float, most: float) -> Bounded:
    """Bootstrap-t of a mean, groups resampled whole."""
    sums, sizes = summed(values, groups)
    value, error = sums.sum() / sizes.sum(), deviation(sums, sizes)
    if error <= 1e-12 * abs(value):
        reach = 1 - 0.025 ** (1 / len(sums))
        low, high = value - reach * (value - least), value + reach * (most - value)
        return Bounded(Number(value), Number(low), Number(high))
    picked = np.random.default_rng(98).integers(0, len(sums), size=(RESAMPLES, len(sums)))
    means = sums[picked].sum(axis=1) / sizes[picked].sum(axis=1)
    errors = _deviations(sums[picked], sizes[picked])
    assert errors.min() > 1e-6 * error, "a resample without spread: what the project does then hangs on its seed"
    turned = value - (means - value) / errors * error
    low, high = np.quantile(turned, [0.025, 0.975])
    return Bounded(
        Number(value),
        Number(max(min(low, value), least), chance(turned, 0.025)),
        Number(min(max(high, value), most), chance(turned, 0.975)),
    )


def mcnemar(gained: int, lost: int) -> float:
    fewer, differing = min(gained, lost), gained + lost
    return min(1.0, 2 * binom.cdf(fewer, differing, 0.5)) if differing else 1.0


def sign_flips(steps: Sequence[float], groups: Sequence[str]) -> Number:
    """Share of random turns of whole groups that are as far from 0 as what was seen."""
    sums, _ = summed(steps, groups)
    turns = np.random.default_rng(97).choice([-1.0, 1.0], size=(RESAMPLES, len(sums)))
    extreme = (np.abs(turns @ sums) >= abs(sums.sum()) - 1e-9).sum()
    p = (extreme + 1) / (RESAMPLES + 1)
    return Number(p, 4 * math.sqrt(2 * max(p * (1 - p), 1 / RESAMPLES) / RESAMPLES))


def design_effect(steps: Sequence[float], groups: Sequence[str]) -> float:
    if len(set(groups)) == len(groups):
        return 1.0
    alone = deviation(*summed(steps, [str(place) for place in range(len(steps))]))
    return max(1.0, (deviation(*summed(steps, groups)) / alone) ** 2) if alone else 1.0


def detectable_verdicts(num_rows: float, differing: float) -> float:
    """Connor's sample size of paired proportions, solved for the difference."""

    def needed(difference: float) -> float:
        share = max(differing, difference)
        return (Z * math.sqrt(share) + 0.8416212 * math.sqrt(share - difference**2)) ** 2 / difference**2

    return 1.0 if needed(1.0) >= num_rows else float(bisect(lambda d: needed(d) - num_rows, 1e-6, 1.0))


def detectable_mean(steps: Sequence[float], groups: Sequence[str]) -> float | None:
    if len(set(steps)) == 1:
        return None
    return (
        (Z + 0.8416212) * float(np.std(steps, ddof=1)) / math.sqrt(len(steps)) * math.sqrt(design_effect(steps, groups))
    )


def holm(p_values: Sequence[float]) -> list[float]:
    order = np.argsort(p_values, kind="stable")
    stepped = [min(1.0, (len(p_values) - rank) * p_values[place]) for rank, place in enumerate(order)]
    adjusted = np.maximum.accumulate(stepped)
    return [float(adjusted[list(order).index(place)]) for place in range(len(p_values))]


# --- confidences --------------------------------------------------------------------------------


def mass_bins(sure: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each row: most confident first, equals together in the bin of the middle one."""
    number = np.empty(len(sure), dtype=int)
    for value in set(sure.tolist()):
        before, held = (sure > value).sum(), (sure == value).sum()
        number[sure == value] = int((before + (held - 1) / 2) * min(bins, len(sure)) / len(sure))
    return number


def error(sure: np.ndarray, right: np.ndarray, members: np.ndarray) -> float:
    gaps = [abs(sure[members == one].sum() - right[members == one].sum()) for one in set(members.tolist())]
    return sum(gaps) / len(sure)


def auroc(sure: np.ndarray, right: np.ndarray) -> float:
    won, lost = sure[right == 1], sure[right == 0]
    return float(((won[:, None] > lost).sum() + (won[:, None] == lost).sum() / 2) / (len(won) * len(lost)))


def risks(sure: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The share of errors among the k most confident rows, k from 1 on; equals in any order count by their mean."""
    _, member = np.unique(sure, return_inverse=True)
    wrong = (np.bincount(member, weights=1 - right) / np.bincount(member))[member]
    return np.asarray(wrong[np.argsort(-sure, kind="stable")].cumsum() / np.arange(1, len(sure) + 1))


def kept(sure: np.ndarray, right: np.ndarray, coverage: float) -> float:
    """Accuracy on so large a share of the rows, a part of a row counting as such."""
    errors = np.append(0.0, risks(sure, right) * np.arange(1, len(sure) + 1))
    return 1 - float(np.interp(coverage * len(sure), np.arange(len(sure) + 1), errors)) / (coverage * len(sure))


def calibration(told: Sequence[float], right: Sequence[float], groups: Sequence[str], bins: int) -> dict[str, Bounded]:
    """Every calibration metric with its bounds: groups resampled, the bins those of the observed rows."""
    sure, verdicts = np.array(told), np.array(right)
    by = {"ece": np.minimum((sure * bins).astype(int), bins - 1), "ece_mass": mass_bins(sure, bins)}
    scores: dict[str, Callable[[np.ndarray], float]] = {
        "ece": lambda rows: error(sure[rows], verdicts[rows], by["ece"][rows]),
        "ece_mass": lambda rows: error(sure[rows], verdicts[rows], by["ece_mass"][rows]),
        "brier": lambda rows: float(((sure[rows] - verdicts[rows]) ** 2).mean()),
        "auroc": lambda rows: auroc(sure[rows], verdicts[rows]),
        "aurc": lambda rows: float(risks(sure[rows], verdicts[rows]).mean()),
        "accuracy_at_80": lambda rows: kept(sure[rows], verdicts[rows], 0.8),
    }
    draw, names = np.random.default_rng(96), sorted(set(groups))
    members = [np.flatnonzero(np.array(groups) == name) for name in names]
    picks = [np.concatenate([members[i] for i in draw.integers(0, len(names), len(names))]) for _ in range(1000)]
    lucky = [(draw.random(len(sure)) < sure).astype(float) for _ in range(2000)]
    found = {name: _bounds(name, score, picks, len(sure)) for name, score in scores.items()}
    for name in ("ece", "ece_mass"):
        by_chance = np.array([error(sure, right, by[name]) for right in lucky])
        if found[name].value.value <= np.quantile(by_chance, 0.975):
            found[name] = Bounded(found[name].value, Number(0.0), found[name].high)
        if name == "ece":
            mean_of = Number(by_chance.mean(), 4 * by_chance.std() / math.sqrt(len(by_chance)))
            bounds = _percentiles(mean_of.value, by_chance, 0.025, 0.0)
            found["ece_by_chance"] = Bounded(mean_of, bounds.low, bounds.high)
    return found


def _bounds(name: str, score: Callable[[np.ndarray], float], picks: Sequence[np.ndarray], size: int) -> Bounded:
    value = score(np.arange(size))
    drawn = np.array([score(rows) for rows in picks])
    return _percentiles(value, np.maximum(2 * value - drawn, 0) if name.startswith("ece") else drawn, 0.025, 0.0)
