import math
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from pipelines.evaluation.calibration import (
    DEFINITIONS,
    TEMPERATURES,
    at_bound,
    fit_scaling,
    fit_temperature,
    measures,
    selective,
    softened,
    softened_options,
)

SURE = [0.95, 0.9, 0.9, 0.6, 0.55, 0.3, 0.1]
RIGHT = [True, True, False, True, False, False, False]


def sample(num_rows: int, seed: int, power: float) -> tuple[list[float], list[bool]]:
    """Confidences and verdicts; a power over 1 makes the subject too sure of itself."""
    draw = np.random.default_rng(seed)
    sure = draw.beta(5, 2, size=num_rows)
    return sure.tolist(), (draw.random(num_rows) < sure**power).tolist()


def values(sure: list[float], right: list[bool], bins: int = 5) -> dict[str, float]:
    return {name: found.value for name, found in measures(sure, right, None, bins, 2, 0).items()}


def test_every_measure_is_defined() -> None:
    assert set(values(SURE, RIGHT)) == set(DEFINITIONS) - {"temperature"}


def test_errors_as_counted_by_hand() -> None:
    found = values(SURE, RIGHT)
    # Bins [0, 0.2): 0.1; [0.2, 0.4): 0.3; [0.4, 0.6): 0.55; [0.6, 0.8): 0.6; [0.8, 1]: 2.75, two of them right.
    assert found["ece"] == pytest.approx((0.1 + 0.3 + 0.55 + 0.4 + 0.75) / 7)
    gaps = [sure - right for sure, right in zip(SURE, RIGHT, strict=True)]
    assert found["brier"] == pytest.approx(sum(gap**2 for gap in gaps) / 7)
    # Ranks 0; 1.5 and 1.5; 3; 4; 5; 6 of seven rows in two bins: the first four rows and the last three.
    assert values(SURE, RIGHT, bins=2)["ece_mass"] == pytest.approx((3.35 - 3 + 0.95) / 7)


def test_rows_of_one_confidence_share_a_bin() -> None:
    # Two bins of two rows: the three of 0.5 go where their middle one belongs.
    found = values([0.9, 0.5, 0.5, 0.5], [True, False, False, True], bins=2)
    assert found["ece_mass"] == pytest.approx((0.1 + 0.5) / 4)


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    assert values([1.0, 0.95], [True, True], bins=10)["ece"] == pytest.approx(0.05 / 2)
    assert values([1.0, 0.9], [False, True], bins=10)["ece"] == pytest.approx(0.9 / 2)


def test_ranking_as_counted_by_hand() -> None:
    found = values(SURE, RIGHT)
    # Of 3 right and 4 wrong: 0.95 beats 4, 0.9 beats 3 and ties with one, 0.6 beats 3.
    assert found["auroc"] == pytest.approx((4 + 3.5 + 3) / 12)
    # 80 % of seven rows are 5.6: five rows with three right, and 0.6 of the sixth, which is wrong.
    assert found["accuracy_at_80"] == pytest.approx(3 / 5.6)
    risks = [0, 1 / 4, 1 / 3, 1 / 4, 2 / 5, 3 / 6, 4 / 7]
    assert found["aurc"] == pytest.approx(sum(risks) / 7)


def test_auroc_is_mann_whitneys() -> None:
    sure, right = sample(300, seed=1, power=1.3)
    rounded = np.round(sure, 1)
    won = mannwhitneyu(rounded[np.array(right)], rounded[~np.array(right)]).statistic
    assert values(rounded.tolist(), right)["auroc"] == pytest.approx(won / (sum(right) * (300 - sum(right))))


def test_ties_are_the_mean_over_all_orders() -> None:
    blocks = [[True, False], [True, True, False, False], [False]]
    risks, at_80 = [], []
    for orders in permutations(blocks[1]):
        for first in permutations(blocks[0]):
            wrong = np.cumsum([not verdict for verdict in [*first, *orders, *blocks[2]]])
            risks.append(np.mean(wrong / np.arange(1, 8)))
            at_80.append(1 - (wrong[4] + 0.6 * (wrong[5] - wrong[4])) / 5.6)
    sure = [0.9] * 2 + [0.5] * 4 + [0.2]
    found = values(sure, [verdict for block in blocks for verdict in block])
    assert found["aurc"] == pytest.approx(np.mean(risks))
    assert found["accuracy_at_80"] == pytest.approx(np.mean(at_80))


def test_one_confidence_for_all_ranks_nothing() -> None:
    found = values([0.7] * 10, [True] * 6 + [False] * 4)
    assert found["ece"] == found["ece_mass"] == pytest.approx(0.1)
    assert found["auroc"] == 0.5
    assert found["aurc"] == pytest.approx(0.4)
    assert found["accuracy_at_80"] == pytest.approx(0.6)
    assert selective([0.7] * 10, [True] * 6 + [False] * 4) == [(1.0, 0.6)]


@pytest.mark.parametrize("verdict", [True, False])
def test_what_one_class_leaves_undefined_is_left_out(verdict: bool) -> None:
    found = measures([0.9, 0.4, 0.7], [verdict] * 3, None, 5, 100, 0)
    assert set(found) == set(DEFINITIONS) - {"temperature", "auroc"}
    assert all(math.isfinite(x) for one in found.values() for x in (one.value, one.low, one.high))
    assert found["aurc"].value == pytest.approx(0 if verdict else 1)


def test_the_curve_as_counted_by_hand() -> None:
    points = [(1 / 7, 1.0), (3 / 7, 2 / 3), (4 / 7, 3 / 4), (5 / 7, 3 / 5), (6 / 7, 3 / 6), (1.0, 3 / 7)]
    assert np.allclose(selective(SURE, RIGHT), points)
    shuffled = [4, 0, 6, 2, 5, 1, 3]
    assert selective([SURE[i] for i in shuffled], [RIGHT[i] for i in shuffled]) == selective(SURE, RIGHT)


def test_intervals_are_those_of_a_loop_over_groups() -> None:
    sure, right = sample(120, seed=3, power=3.0)
    # Groups of rows that are right or wrong alike, by the gap to their confidence: four rows are worth about one.
    order = sorted(range(120), key=lambda row: sure[row] - right[row])
    sure, right = [sure[row] for row in order], [right[row] for row in order]
    groups = [f"g{row // 4}" for row in range(120)]
    found = measures(sure, right, groups, 5, 4000, 0)
    draw, loops = np.random.default_rng(50), []
    for _ in range(1000):
        rows = [4 * pick + at for pick in draw.integers(0, 30, size=30) for at in range(4)]
        loops.append(values([sure[row] for row in rows], [right[row] for row in rows]))
    for name in ("brier", "auroc", "aurc", "accuracy_at_80"):
        low, high = np.quantile([loop[name] for loop in loops], [0.025, 0.975])
        assert found[name].low == pytest.approx(low, abs=0.1 * (high - low)), name
        assert found[name].high == pytest.approx(high, abs=0.1 * (high - low)), name
    low, high = np.quantile([loop["ece"] for loop in loops], [0.025, 0.975])
    assert found["ece"].high == pytest.approx(2 * found["ece"].value - low, abs=0.1 * (high - low))
    assert found["ece"].low == pytest.approx(2 * found["ece"].value - high, abs=0.1 * (high - low))


def test_a_calibrated_subject_is_told_from_chance() -> None:
    sure, right = sample(400, seed=2, power=1.0)
    found = measures(sure, right, None, 10, 500, 0)
    assert found["ece"].value > 0.02
    assert found["ece"].low == 0.0
    chances = []
    draw = np.random.default_rng(9)
    for _ in range(300):
        drawn = draw.random(400) < np.array(sure)
        chances.append(values(sure, drawn.tolist(), bins=10)["ece"])
    assert found["ece_by_chance"].value == pytest.approx(np.mean(chances), abs=0.003)
    low, high = np.quantile(chances, [0.025, 0.975])
    assert found["ece_by_chance"].low == pytest.approx(low, abs=0.005)
    assert found["ece_by_chance"].high == pytest.approx(high, abs=0.008)
    off = measures(*sample(400, seed=8, power=2.0), None, 10, 500, 0)
    assert off["ece"].low > 0.05
    assert off["ece_mass"].low > 0.05


def test_the_order_of_rows_doesnt_matter_and_the_seed_does() -> None:
    sure, right = sample(90, seed=2, power=1.2)
    rounded = np.round(sure, 1)
    groups = [f"g{row // 3}" for row in range(90)]
    order = np.random.default_rng(1).permutation(90)
    found = measures(rounded, right, groups, 5, 300, 0)
    again = measures(rounded[order], [right[i] for i in order], [groups[i] for i in order], 5, 300, 0)
    for name in found:
        assert (again[name].value, again[name].low, again[name].high) == pytest.approx(
            (found[name].value, found[name].low, found[name].high)
        ), name
    assert found["brier"].low != measures(rounded, right, groups, 5, 300, 1)["brier"].low


def test_no_row_and_impossible_confidences_are_refused() -> None:
    with pytest.raises(ValueError, match="no row"):
        measures([], [], None, 5, 100, 0)
    with pytest.raises(ValueError, match=r"a confidence is 1\.2"):
        selective([0.5, 1.2], [True, False])
    with pytest.raises(ValueError, match="nan"):
        measures([0.5, math.nan], [True, False], None, 5, 100, 0)
    with pytest.raises(ValueError, match="2 confidences, 1 verdicts"):
        measures([0.5, 0.4], [True], None, 5, 100, 0)
    with pytest.raises(ValueError, match="2 rows, got 1 groups"):
        measures([0.5, 0.4], [True, False], ["a"], 5, 100, 0)


# --- temperature --------------------------------------------------------------------------------


def test_the_temperature_that_logits_were_sharpened_by_is_found() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 1.5, size=(4000, 6))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = [int(draw.choice(6, p=row)) for row in shares]
    for temperature in (0.4, 1.0, 3.0):
        found = fit_temperature(logits * temperature, truth)
        assert found == pytest.approx(temperature, rel=0.05)
        assert not at_bound(found)
    assert np.allclose(softened_options(logits * 3.0, 3.0), shares)


def test_the_temperature_is_where_the_loss_is_least() -> None:
    draw = np.random.default_rng(1)
    logits, truth = draw.normal(0, 3, size=(50, 4)), draw.integers(0, 4, size=50)
    logits[np.arange(50), truth] += 2

    def loss(temperature: float) -> float:
        return -float(np.log(softened_options(logits, temperature)[np.arange(50), truth]).mean())

    found = fit_temperature(logits, truth.tolist())
    grid = np.linspace(0.5, 10, 2000)
    assert found == pytest.approx(grid[np.argmin([loss(at) for at in grid])], abs=0.01)


def test_separable_rows_end_at_the_bound_and_say_so() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    assert fit_temperature(logits, [0, 1, 0]) == TEMPERATURES[0]
    assert at_bound(fit_temperature(logits, [0, 1, 0]))
    assert fit_temperature(logits, [1, 0, 1]) == TEMPERATURES[1]
    assert fit_temperature(np.zeros((3, 2)), [0, 1, 0]) == 1.0


def test_log_likelihoods_far_below_zero_are_no_trouble() -> None:
    logits = np.array([[-2000.0, -2001.0], [-900.0, -899.0], [-1500.0, -1501.0]])
    found = fit_temperature(logits, [0, 1, 1])
    # Two of three rows right by a margin of 1: the sigmoid of 1 / T is 2 / 3.
    assert found == pytest.approx(1 / math.log(2), rel=1e-3)
    assert softened_options(logits, found)[:, 0] == pytest.approx([2 / 3, 1 / 3, 2 / 3], rel=1e-3)


def test_single_confidences_are_scaled_on_their_log_odds() -> None:
    # At 0.9 two of three are right, at 0.1 one of three: the log-odds of 2 to 1 instead of 9 to 1.
    found = fit_scaling([0.9] * 3 + [0.1] * 3, [True, True, False, False, False, True])
    assert found == pytest.approx(math.log(9) / math.log(2), rel=1e-3)
    assert softened([0.9, 0.1, 0.5], found) == pytest.approx([2 / 3, 1 / 3, 0.5], abs=1e-4)


def test_scaling_meets_its_bounds() -> None:
    assert fit_scaling([0.9, 0.8], [True, True]) == TEMPERATURES[0]
    assert fit_scaling([0.9, 0.8], [False, False]) == TEMPERATURES[1]
    extreme = softened([0.0, 1.0], fit_scaling([0.0, 1.0, 1.0, 0.0], [False, True, False, True]))
    assert np.isfinite(extreme).all()
    assert extreme == pytest.approx([0.5, 0.5], abs=0.15)


def test_no_row_has_no_temperature() -> None:
    with pytest.raises(ValueError, match="expected logits"):
        fit_temperature(np.zeros((0, 3)), [])
    with pytest.raises(ValueError, match="expected logits"):
        fit_temperature(np.zeros((2, 3)), [0])
    with pytest.raises(ValueError, match="no row"):
        fit_scaling([], [])
