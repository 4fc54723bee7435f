import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from benchmarks import evaluation_coverage
from pipelines.interval import (
    Interval,
    are_shared,
    bootstrap_mean,
    bootstrap_outcomes,
    group_sums,
    rate,
    standard_error,
    wilson,
)

Floats = NDArray[np.float64]


def uneven(num_groups: int, seed: int) -> tuple[list[float], list[str], list[list[float]]]:
    """Skewed values, each row's group, and the values group by group; some groups have many rows, some one."""
    draw = np.random.default_rng(seed)
    by_group = [
        list(np.exp(draw.normal(0, 0.5) + draw.normal(0, 0.5, size=1 + int(draw.integers(0, 9)))))
        for _ in range(num_groups)
    ]
    names = [f"g{number}" for number, held in enumerate(by_group) for _ in held]
    return [value for held in by_group for value in held], names, by_group


def loop_of_clusters(by_group: list[list[float]], resamples: int) -> tuple[float, float]:
    """The studentised bootstrap as the books write it: draw groups, take the mean of all their rows and its error."""

    def mean_and_error(drawn: list[list[float]]) -> tuple[float, float]:
        rows = sum(map(len, drawn))
        mean = sum(map(sum, drawn)) / rows
        squares = sum((sum(held) - len(held) * mean) ** 2 for held in drawn)
        return mean, math.sqrt(squares * len(drawn) / (len(drawn) - 1)) / rows

    draw = np.random.default_rng(99)
    value, error = mean_and_error(by_group)
    shifts = []
    for _ in range(resamples):
        mean, its_error = mean_and_error([by_group[pick] for pick in draw.integers(0, len(by_group), len(by_group))])
        shifts.append((mean - value) / its_error)
    high, low = np.quantile(shifts, [0.025, 0.975])
    return value - low * error, value - high * error


def test_wilson_as_its_formula_has_it() -> None:
    z, n, p = 1.959964, 10, 0.8
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = wilson(8, 10)
    assert (found.value, found.method) == (0.8, "Wilson score")
    assert found.low == pytest.approx((middle - half) / (1 + z**2 / n), abs=1e-6)
    assert found.high == pytest.approx((middle + half) / (1 + z**2 / n), abs=1e-6)
    assert wilson(5, 5).high == 1.0
    assert wilson(0, 5).low == 0.0


def test_metrics_carry_the_bounds() -> None:
    assert Interval(0.5, 0.4, 0.7).metrics("f1") == {"f1": 0.5, "f1_low": 0.4, "f1_high": 0.7}


def test_a_rate_of_rows_that_stand_alone_is_wilsons() -> None:
    verdicts = [True, False, True, True]
    assert rate(verdicts, None, 100, 0) == wilson(3, 4)
    assert rate(verdicts, ["d", "a", "c", "b"], 100, 0) == wilson(3, 4)


def test_groups_of_the_same_verdict_count_as_one_row() -> None:
    verdicts = [number < 30 for number in range(40)]
    groups = [str(number) for number in range(40) for _ in range(5)]
    found = rate([verdict for verdict in verdicts for _ in range(5)], groups, 10_000, 0)
    alone = wilson(30, 40)
    assert found.method == "bootstrap over groups"
    assert found.value == 0.75
    assert found.low == pytest.approx(alone.low, abs=0.02)
    assert found.high == pytest.approx(alone.high, abs=0.02)
    assert found.high - found.low > 2 * (wilson(150, 200).high - wilson(150, 200).low)


def test_outcomes_are_drawn_from_the_groups_and_half_a_group_at_each_end() -> None:
    draw = np.random.default_rng(4)
    sizes = draw.integers(1, 6, size=30)
    outcomes = [list(draw.integers(-1, 2, size=size).astype(float)) for size in sizes]
    size = float(np.mean(sizes))
    # Twice each group, once each end, twice the middle: halves and ones in whole numbers.
    sums = np.array([sum(held) for held in outcomes] * 2 + [-size, size, 0.0, 0.0])
    counts = np.array([len(held) for held in outcomes] * 2 + [size] * 4)
    picks = draw.integers(0, len(sums), size=(40_000, 30))
    tail = norm.cdf(math.sqrt(30 / 29) * student.ppf(0.025, 29))
    low, high = np.quantile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [tail, 1 - tail])
    rows = [value for held in outcomes for value in held]
    names = [str(number) for number, held in enumerate(outcomes) for _ in held]
    found = bootstrap_outcomes(rows, names, 40_000, 1, lowest=-1.0)
    assert found.value == pytest.approx(sum(rows) / len(rows))
    assert found.low == pytest.approx(low, abs=0.004)
    assert found.high == pytest.approx(high, abs=0.004)


def test_rare_outcomes_leave_an_interval() -> None:
    alike = bootstrap_outcomes([0.0] * 100, None, 4000, 0, lowest=-1.0)
    assert alike.value == 0.0
    assert 0.01 < alike.high < 0.05
    assert -0.05 < alike.low < -0.01
    assert bootstrap_outcomes([1.0], None, 1000, 0) == Interval(1.0, 0.0, 1.0)


def test_the_mean_of_rows_as_the_formula_has_it() -> None:
    values = np.random.default_rng(5).lognormal(0, 1, size=40)
    drawn = values[np.random.default_rng(98).integers(0, 40, size=(50_000, 40))]
    shifts = (drawn.mean(axis=1) - values.mean()) / (drawn.std(axis=1, ddof=1) / math.sqrt(40))
    high, low = np.quantile(shifts, [0.025, 0.975])
    error = values.std(ddof=1) / math.sqrt(40)
    found = bootstrap_mean(values, None, 50_000, 0)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - low * error, abs=0.03)
    assert found.high == pytest.approx(values.mean() - high * error, abs=0.03)
    # Skewed to the right: the upper bound is further away, which percentiles and z hardly show.
    assert found.high - found.value > 1.5 * (found.value - found.low)


def test_the_mean_of_clusters_as_a_loop_has_it() -> None:
    values, groups, by_group = uneven(25, seed=6)
    low, high = loop_of_clusters(by_group, 10_000)
    found = bootstrap_mean(values, groups, 20_000, 0)
    assert found.method == "bootstrap over groups"
    assert found.low == pytest.approx(low, abs=0.03 * (high - low))
    assert found.high == pytest.approx(high, abs=0.04 * (high - low))


def test_groups_of_one_row_are_rows() -> None:
    values = list(np.random.default_rng(1).normal(size=50))
    groups = [f"g{number}" for number in range(50)]
    assert bootstrap_mean(values, groups, 500, 3) == bootstrap_mean(values, None, 500, 3)
    assert bootstrap_mean(values, groups, 500, 3).method == "bootstrap over rows"


def test_counting_kinds_and_picking_groups_draw_from_the_same() -> None:
    coarse = np.random.default_rng(8).choice([0.0, 0.2, 0.9, 1.0], size=300)
    fine = coarse + np.random.default_rng(9).normal(0, 1e-9, size=300)
    counted, picked = bootstrap_mean(coarse, None, 20_000, 0), bootstrap_mean(fine, None, 20_000, 0)
    width = counted.high - counted.low
    assert counted != picked
    assert counted.low == pytest.approx(picked.low, abs=0.03 * width)
    assert counted.high == pytest.approx(picked.high, abs=0.03 * width)


def test_the_order_of_rows_and_the_names_of_groups_dont_matter() -> None:
    values, groups, _ = uneven(30, seed=2)
    order = np.random.default_rng(0).permutation(len(values))
    renamed = {name: f"{len(groups) - number:04}" for number, name in enumerate(dict.fromkeys(groups))}
    shuffled = bootstrap_mean([values[i] for i in order], [renamed[groups[i]] for i in order], 1000, 5)
    found = bootstrap_mean(values, groups, 1000, 5)
    assert shuffled.low == pytest.approx(found.low, rel=1e-9)
    assert shuffled.high == pytest.approx(found.high, rel=1e-9)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, groups, _ = uneven(30, seed=2)
    first = bootstrap_mean(values, groups, 500, 1)
    assert first == bootstrap_mean(values, groups, 500, 1)
    assert first != bootstrap_mean(values, groups, 500, 2)


def test_large_values_close_to_one_another_lose_nothing_to_rounding() -> None:
    values = np.random.default_rng(3).normal(size=60)
    small, large = bootstrap_mean(values, None, 2000, 0), bootstrap_mean(values + 1e7, None, 2000, 0)
    assert large.low - 1e7 == pytest.approx(small.low, abs=1e-4)
    assert large.high - 1e7 == pytest.approx(small.high, abs=1e-4)


def test_values_all_alike_are_bounded_as_clopper_and_pearson_do() -> None:
    exact = binomtest(20, 20).proportion_ci(0.95, method="exact")
    found = bootstrap_mean([1.0] * 20, None, 100, 0, (0.0, 1.0))
    assert found.low == pytest.approx(exact.low)
    assert (found.value, found.high) == (1.0, 1.0)
    middle = bootstrap_mean([0.0] * 20, None, 100, 0, (-1.0, 1.0))
    assert middle.low == -middle.high == pytest.approx(exact.low - 1)
    assert bootstrap_mean([3.0] * 20, None, 100, 0) == Interval(3.0, 3.0, 3.0)


def test_one_group_alone_says_next_to_nothing() -> None:
    found = bootstrap_mean([0.2, 0.4, 0.9], ["a"] * 3, 100, 0, (0.0, 1.0))
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.5 * 0.025, 1 - 0.5 * 0.025))


def test_spread_that_rests_on_few_rows_leaves_the_percentiles() -> None:
    nearly = np.where(np.arange(100) < 97, 1.0, 0.5) - np.random.default_rng(2).uniform(0, 1e-3, size=100)
    picks = nearly[np.random.default_rng(7).integers(0, 100, size=(50_000, 100))].mean(axis=1)
    low, high = np.quantile(picks, [0.0245, 0.9755])
    found = bootstrap_mean(nearly, None, 20_000, 0)
    assert found.low == pytest.approx(low, abs=0.0015)
    assert found.high == pytest.approx(high, abs=0.0015)
    exactly = bootstrap_mean([1.0] * 97 + [0.5] * 3, None, 20_000, 0)
    assert (exactly.low, exactly.high) == pytest.approx((0.965, 1.0))


def test_an_interval_stays_within_the_bounds() -> None:
    values = [1.0] * 12 + [0.97, 0.5, 0.3, 0.0]
    free, held = bootstrap_mean(values, None, 4000, 0), bootstrap_mean(values, None, 4000, 0, (0.0, 0.9))
    assert free.high > 0.9 == held.high
    assert held.low == free.low
    swapped = bootstrap_mean([-value for value in values], None, 4000, 0, (-0.9, 0.0))
    assert swapped.low == -0.9


def test_the_standard_error_of_rows_is_the_usual_one() -> None:
    values = [1.0, 4.0, 2.0, 9.0]
    assert standard_error(*group_sums(values, None)) == pytest.approx(np.std(values, ddof=1) / 2)
    doubled = standard_error(*group_sums(values * 2, ["a", "b", "c", "d"] * 2))
    assert doubled == pytest.approx(np.std(values, ddof=1) / 2)


def test_no_row_and_groups_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no row"):
        bootstrap_mean([], None, 100, 0)
    with pytest.raises(ValueError, match="no row"):
        bootstrap_outcomes([], None, 100, 0)
    with pytest.raises(ValueError, match="3 rows, got 2 groups"):
        bootstrap_mean([1.0, 2.0, 3.0], ["a", "b"], 100, 0)


def test_clustered_intervals_hold_the_truth_and_naive_ones_dont(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_coverage, "SETS", 300)
    monkeypatch.setattr(evaluation_coverage, "RESAMPLES", 1000)
    names = ("clustered_rate", "clustered_difference", "clustered_skewed_mean", "clustered_rate_naive")
    chosen = {name: evaluation_coverage.SCENARIOS[name] for name in names}
    monkeypatch.setattr(evaluation_coverage, "SCENARIOS", chosen)
    held = evaluation_coverage.coverage()
    for name in names[:3]:
        assert 0.91 <= held[name] <= 0.985, name
    assert held["clustered_rate_naive"] < 0.8


def test_a_pair_among_thousands_is_no_cluster() -> None:
    """One pair of 4,000 rows can raise the variance by 1/2,000 at most, forty rows of one group by over a third."""
    alone = [str(row) for row in range(4_000)]
    assert not are_shared(alone)
    assert not are_shared(["0", *alone[:-1]])
    assert are_shared(["0"] * 40 + alone[40:])
    assert are_shared(["a", "a", "b"])
    verdicts = [row % 5 > 0 for row in range(4_000)]
    assert rate(verdicts, ["0", *alone[:-1]], 100, 0) == wilson(3_200, 4_000)
