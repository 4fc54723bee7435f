"""Whether a subject knows when it is right: calibration, ranking by confidence, and the temperature.

Confidences are chances in 0..1 that the answer is right, verdicts whether it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.interval import TAIL, Floats, Interval, Values, unit

COVERED = 0.8
# Below and above, a temperature makes every confidence 0 or 1, or all the same.
TEMPERATURES = (0.02, 50.0)
# Numbers held at a time while resampling: what a processor's cache holds is drawn fastest.
_BLOCK = 100_000

DEFINITIONS: dict[str, str] = {
    "ece": "Expected calibration error: the gap between confidence and accuracy, mean over bins of equal width, "
    "weighted by their rows (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017). Chance alone opens gaps, the more "
    "the fewer rows a bin has, so in small samples it is too high: see ece_by_chance. The interval is the basic "
    "bootstrap's (Davison and Hinkley 1997, section 5.2), which corrects for that, and begins at 0 where a perfectly "
    "calibrated subject could get as much; simulated, it holds the truth in 86 to 98 of 100 samples. "
    "Less is better.",
    "ece_by_chance": "The ece that a perfectly calibrated subject gets on these rows by chance: right answers drawn "
    "with the very confidences, mean and middle 95 % (Bröcker and Smith 2007).",
    "ece_mass": "The same over bins with as many rows each (Nguyen and O'Connor 2015), which doesn't depend on a few "
    "rows in bins that are almost empty. Less is better.",
    "brier": "Mean squared difference of confidence and verdict, 1 for right and 0 for wrong (Brier 1950). 0 is "
    "perfect, 0.25 what confidence 0.5 in everything gets. Less is better.",
    "auroc": "The chance that of a right and a wrong answer the right one has the higher confidence, ties counting "
    "half (Hanley and McNeil 1982). 0.5 is no better than a coin. More is better.",
    "aurc": "Area under the risk-coverage curve: the share of wrong answers among the most confident ones, mean over "
    "all coverages (Geifman and El-Yaniv 2017; El-Yaniv and Wiener 2010). Less is better.",
    "accuracy_at_80": "Accuracy on the 80 % of rows with the highest confidence, as if the others went to a person "
    "(selective accuracy, El-Yaniv and Wiener 2010). More is better.",
    "temperature": "What logits are divided by, fitted on validation rows to the least negative log-likelihood (Guo "
    "et al. 2017, section 4.2). Over 1 the subject was too sure of itself, below 1 not sure enough.",
}


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows with a confidence from `low` to `high`, their mean confidence and their accuracy, for a picture."""

    low: float
    high: float
    confidence: float
    accuracy: Interval
    num_rows: int


def selective(confidences: Values, verdicts: Sequence[bool]) -> list[tuple[float, float]]:
    """(coverage, accuracy) of the most confident rows, a point for each confidence there is, most confident first.

    Method: R. El-Yaniv and Y. Wiener, "On the foundations of noise-free selective classification", JMLR 11 (2010).
    Raises ValueError as `measures` does.
    """
    rows, right = _steps(*_checked(confidences, verdicts))
    covered = rows.cumsum()
    return [(float(c), float(a)) for c, a in zip(covered / covered[-1], right.cumsum() / covered, strict=True)]


def measures(
    confidences: Values, verdicts: Sequence[bool], groups: Sequence[str] | None, bins: int, resamples: int, seed: int
) -> dict[str, Interval]:
    """The metrics of `DEFINITIONS` but for the temperature; auroc is left out where all or none are right.

    Intervals: percentile bootstrap over groups (`groups` None: over rows), the basic bootstrap for the two errors,
    whose resamples are biased as they themselves are; the bins stay those of the observed rows. Rows of one
    confidence are taken in any order: what is expected over all orders is exact. Raises ValueError where there is
    no row, or a confidence is outside 0..1.
    """
    sure, right = _checked(confidences, verdicts)
    sample = _Sample(sure, right, _members(groups, len(sure)), bins)
    observed = sample.measure(np.ones((1, sample.num_groups)))
    draw = np.random.default_rng(seed)
    step = max(1, _BLOCK // len(sure))
    sizes = [min(step, resamples - done) for done in range(0, resamples, step)]
    drawn = _joined([sample.measure(_drawn(draw, (size, sample.num_groups))) for size in sizes])
    chance = _joined([sample.by_chance(draw, size) for size in sizes])
    method = f"bootstrap over {unit(groups)}"
    found = {}
    for name, (value,) in observed.items():
        if name in chance:
            found[name] = _of_error(float(value), drawn[name], chance[name], f"basic {method}")
        elif not np.isnan(value):
            found[name] = _percentiles(float(value), drawn[name][~np.isnan(drawn[name])], method)
    found["ece_by_chance"] = _percentiles(float(chance["ece"].mean()), chance["ece"], "simulated")
    return found


def _joined(blocks: Sequence[dict[str, Floats]]) -> dict[str, Floats]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _percentiles(value: float, drawn: Floats, method: str) -> Interval:
    low, high = (float(bound) for bound in np.quantile(drawn, [TAIL, 1 - TAIL]))
    return Interval(value, min(low, value), max(high, value), method)


def _of_error(value: float, drawn: Floats, chance: Floats, method: str) -> Interval:
    """The basic interval of a calibration error, from 0 where chance alone gives as much."""
    low, high = (2 * value - float(bound) for bound in np.quantile(drawn, [1 - TAIL, TAIL]))
    shown = value > float(np.quantile(chance, 1 - TAIL))
    return Interval(value, min(max(low, 0.0), value) if shown else 0.0, max(high, value), method)


def _drawn(draw: np.random.Generator, size: tuple[int, int]) -> Floats:
    """How often each resample (rows) has each group (columns)."""
    picks = draw.integers(0, size[1], size=size) + np.arange(size[0])[:, None] * size[1]
    return np.bincount(picks.ravel(), minlength=size[0] * size[1]).reshape(size).astype(np.float64)


def _members(groups: Sequence[str] | None, num_rows: int) -> NDArray[np.int64]:
    if groups is None:
        return np.arange(num_rows)
    if len(groups) != num_rows:
        raise ValueError(f"expected one group a row: {num_rows} rows, got {len(groups)} groups")
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]


class _Sample:
    """Rows, most confident first, and their metrics under any weights of their groups."""

    def __init__(self, sure: Floats, right: Floats, members: NDArray[np.int64], bins: int) -> None:
        order = np.lexsort((right, members, -sure))
        self._sure, self._right, self._members = sure[order], right[order], members[order]
        self._starts = np.flatnonzero(np.append(True, np.diff(self._sure) != 0))
        self.num_groups = int(members.max()) + 1
        gaps = self._sure - self._right
        self._bins = {"ece": _by_width(self._sure, bins), "ece_mass": self._by_mass(bins)}
        self._by_group = {name: self._grouped(gaps, members) for name, members in self._bins.items()}
        self._by_group["brier"] = self._grouped(gaps**2, np.zeros(len(gaps), dtype=np.int64))

    def measure(self, weights: Floats) -> dict[str, Floats]:
        """Every metric under each of the weightings (weightings, groups), whole numbers; NaN where it is undefined."""
        rows = weights[:, self._members]
        found = {name: np.abs(weights @ sums).sum(axis=1) / rows.sum(axis=1) for name, sums in self._by_group.items()}
        right = rows * self._right
        if len(self._starts) < len(self._sure):
            rows, right = (np.add.reduceat(of, self._starts, axis=1) for of in (rows, right))
        return found | _ranked(rows, right)

    def by_chance(self, draw: np.random.Generator, times: int) -> dict[str, Floats]:
        """The calibration errors, if answers were right with just their confidence, so many times drawn."""
        gaps = self._sure - (draw.random((times, len(self._sure))) < self._sure)
        found = {}
        for name, members in self._bins.items():
            chosen = (members[:, None] == np.unique(members)).astype(np.float64)
            found[name] = np.abs(gaps @ chosen).sum(axis=1) / len(self._sure)
        return found

    def _by_mass(self, bins: int) -> NDArray[np.int64]:
        """Bins as equal in rows as can be; rows of one confidence go together, where the middle one belongs."""
        ends = np.append(self._starts[1:], len(self._sure))
        middles = (self._starts + ends - 1) / 2
        numbers = (middles * min(bins, len(self._sure)) / len(self._sure)).astype(np.int64)
        return np.repeat(numbers, ends - self._starts)

    def _grouped(self, values: Floats, members: NDArray[np.int64]) -> Floats:
        """Sums of the values by group and bin."""
        sums = np.zeros((self.num_groups, int(members.max()) + 1))
        np.add.at(sums, (self._members, members), values)
        return sums


def _ranked(rows: Floats, right: Floats) -> dict[str, Floats]:
    """The metrics that depend on the order alone, of how many rows each confidence has and how many are right.

    Both are (weightings, confidences), most confident first.
    """
    each = np.arange(len(rows))
    wrong, covered = rows - right, rows.cumsum(axis=1)
    errors, total = wrong.cumsum(axis=1), covered[:, -1]
    # The mean share of errors after each row of a tie: its m rows add e errors each, so that
    # sum_j (E + j e) / (N + j) = m e + (E - e N) (H(N + m) - H(N)) with the harmonic numbers H.
    share = np.divide(wrong, rows, out=np.zeros_like(rows), where=rows > 0)
    harmonic = np.append(0.0, (1 / np.arange(1, int(total.max()) + 1)).cumsum())
    gained = np.diff(harmonic[covered.astype(np.int32)], axis=1, prepend=0.0)
    risk = errors[:, -1] + np.einsum("ij,ij->i", errors - share * covered, gained)
    # Up to the confidence at which the coverage is reached, and of that as many as are still missing.
    last = (covered < COVERED * total[:, None]).sum(axis=1)
    missed = errors[each, last] - share[each, last] * (covered[each, last] - COVERED * total)
    pairs = (total - errors[:, -1]) * errors[:, -1]
    won = np.einsum("ij,ij->i", right, errors[:, -1:] - errors + wrong / 2)
    auroc = np.divide(won, pairs, out=np.full(len(rows), np.nan), where=pairs > 0)
    return {"auroc": auroc, "aurc": risk / total, "accuracy_at_80": 1 - missed / (COVERED * total)}


def _steps(sure: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Rows and right answers of each confidence, most confident first."""
    _, members = np.unique(-sure, return_inverse=True)
    return np.bincount(members).astype(np.float64), np.bincount(members, weights=right).astype(np.float64)


def _by_width(sure: Floats, bins: int) -> NDArray[np.int64]:
    return np.minimum((sure * bins).astype(np.int64), bins - 1)


def _checked(confidences: Values, verdicts: Sequence[bool]) -> tuple[Floats, Floats]:
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(verdicts, dtype=np.float64)
    if not sure.size:
        raise ValueError("no row with a confidence")
    if sure.shape != right.shape:
        raise ValueError(f"expected a verdict for each confidence: {len(sure)} confidences, {len(right)} verdicts")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"a confidence is {sure[~((sure >= 0) & (sure <= 1))][0]}, expected 0 to 1")
    return sure, right


# --- temperature --------------------------------------------------------------------------------


def fit_temperature(logits: Floats, truth: Sequence[int]) -> float:
    """The temperature T of softmax(logits / T) with the least negative log-likelihood of the true options.

    `logits` (rows, options), log-likelihoods for one; `truth` the index of each row's true option. Method: C. Guo et
    al., "On calibration of modern neural networks", ICML 2017, section 4.2. The search stays within `TEMPERATURES`:
    where every row's true option is the likeliest, no temperature is too low, and the bound comes back; `at_bound`
    tells. Raises ValueError without a row.
    """
    given = np.asarray(logits, dtype=np.float64)
    if given.ndim != 2 or not len(given) or len(given) != len(truth):
        raise ValueError(f"expected logits (rows, options) and a true option a row, got {given.shape}, {len(truth)}")
    above = given - given.max(axis=1, keepdims=True)
    true = above[np.arange(len(given)), np.asarray(truth)]

    def loss(temperature: float) -> float:
        return float(np.mean(np.log(np.exp(above / temperature).sum(axis=1)) - true / temperature))

    return _least(loss)


def fit_scaling(probabilities: Values, verdicts: Sequence[bool]) -> float:
    """The temperature of single confidences: their log-odds are divided by it.

    For answers without a distribution over options; the least negative log-likelihood of the verdicts, otherwise as
    `fit_temperature`. It can't move a confidence past 0.5: a subject that is sure and mostly wrong ends near 0.5,
    at the upper bound. Raises ValueError as `measures` does.
    """
    sure, right = _checked(probabilities, verdicts)
    odds = _log_odds(sure) * (2 * right - 1)

    def loss(temperature: float) -> float:
        return float(np.mean(np.logaddexp(0, -odds / temperature)))

    return _least(loss)


def at_bound(temperature: float) -> bool:
    """Whether the fit ended at a bound of the search: the rows ask for an extreme that they can't measure."""
    return temperature in TEMPERATURES


def softened_options(logits: Floats, temperature: float) -> Floats:
    """softmax(logits / temperature), (rows, options): each option's probability."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def softened(probabilities: Values, temperature: float) -> Floats:
    """Single confidences with their log-odds divided by the temperature, as `fit_scaling` fits it."""
    odds = _log_odds(np.asarray(probabilities, dtype=np.float64)) / temperature
    return np.asarray(np.exp(-np.logaddexp(0, -odds)))


def _log_odds(sure: Floats) -> Floats:
    """Of 0 and 1 those of the nearest number that has any: a single wrong answer must not weigh infinitely much."""
    kept = np.clip(sure, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(kept) - np.log1p(-kept))


def _least(loss: Callable[[float], float]) -> float:
    """Where the loss is least within `TEMPERATURES`, 1 where nothing is gained; it is convex in 1 / temperature."""
    from scipy.optimize import minimize_scalar

    low, high = TEMPERATURES
    found = minimize_scalar(
        lambda logarithm: loss(float(np.exp(logarithm))), bounds=(np.log(low), np.log(high)), method="bounded"
    )
    return min((1.0, low, high, float(np.exp(found.x))), key=loss)
