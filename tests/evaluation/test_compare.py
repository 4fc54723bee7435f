import itertools
import math

import numpy as np
import pytest
from scipy.stats import permutation_test

from pipelines.evaluation.compare import (
    DEFINITIONS,
    MCNEMAR,
    compare_values,
    compare_verdicts,
    design_effect,
    detectable_mean,
    mcnemar_p,
    minimum_detectable_difference,
    paired_difference,
    sign_flip_p,
)
from pipelines.interval import bootstrap_mean


def verdicts(gained: int, lost: int, both: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [False] * gained + [True] * lost + [True] * both + [False] * neither
    b = [True] * gained + [False] * lost + [True] * both + [False] * neither
    return a, b


def test_difference_and_counts_as_counted_by_hand() -> None:
    found = compare_verdicts(*verdicts(gained=8, lost=2, both=20, neither=10), groups=None, resamples=2000, seed=0)
    assert found.difference.value == pytest.approx(6 / 40)
    assert (found.num_gained, found.num_lost, found.num_rows) == (8, 2, 40)
    assert found.p == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert found.p_method == MCNEMAR
    assert found.minimum_detectable_difference == minimum_detectable_difference(40, 10 / 40)
    assert found.difference.low < 6 / 40 < found.difference.high


def test_verdicts_of_rows_that_stand_alone_are_tested_exactly() -> None:
    found = compare_verdicts(*verdicts(gained=80, lost=55, both=9, neither=0), groups=None, resamples=100, seed=0)
    assert found.p == pytest.approx(2 * sum(math.comb(135, k) for k in range(56)) / 2**135)
    grouped = compare_verdicts(*verdicts(80, 55, 9, 0), groups=[str(row) for row in range(144)], resamples=100, seed=0)
    assert grouped == found


def test_every_metric_is_named_and_defined() -> None:
    parts = {name.removeprefix("difference") for name in DEFINITIONS} | {"_low", "_high"}
    assert set(compare_verdicts(*verdicts(3, 1, 5, 0), None, 100, 0).metrics("m")) == {f"m{part}" for part in parts}
    of_values = compare_values([0.1, 0.5, 0.4], [0.2, 0.5, 0.9], None, 100, 0).metrics("m")
    assert set(of_values) == {"m", "m_low", "m_high", "m_p", "m_detectable"}
    alike = compare_values([0.1, 0.5], [0.1, 0.5], None, 100, 0).metrics("m")
    assert set(alike) == {"m", "m_low", "m_high", "m_p"}
    assert all(math.isfinite(value) for value in (of_values | alike).values())


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = verdicts(60, 40, 300, 101)
    first = paired_difference(a, b, None, resamples=200, seed=1)
    assert first == paired_difference(a, b, None, resamples=200, seed=1)
    assert first != paired_difference(a, b, None, resamples=200, seed=2)


def test_swapping_the_subjects_turns_the_sign() -> None:
    a, b = verdicts(60, 40, 300, 101)
    there, back = paired_difference(a, b, None, 20_000, 0), paired_difference(b, a, None, 20_000, 0)
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high, abs=0.004)


def test_the_interval_is_the_bootstrap_over_rows() -> None:
    a, b = verdicts(30, 12, 100, 58)
    steps = np.array(b, dtype=float) - np.array(a, dtype=float)
    picks = np.random.default_rng(5).integers(0, len(steps), size=(20_000, len(steps)))
    low, high = np.quantile(steps[picks].mean(axis=1), [0.025, 0.975])
    found = paired_difference(a, b, None, resamples=20_000, seed=3)
    # Differences of resamples lie on a grid of 1/200; Monte-Carlo error may shift a bound by one step.
    assert found.low == pytest.approx(low, abs=0.0051)
    assert found.high == pytest.approx(high, abs=0.0051)


def test_the_interval_covers_the_true_difference() -> None:
    draw = np.random.default_rng(7)
    covered = 0
    for seed in range(300):
        gained, lost, both, neither = draw.multinomial(250, [0.2, 0.1, 0.5, 0.2])
        found = paired_difference(*verdicts(gained, lost, both, neither), groups=None, resamples=500, seed=seed)
        covered += found.low <= 0.1 <= found.high
    assert 0.9 <= covered / 300 <= 0.985


def test_rows_that_all_agree_still_leave_a_difference_possible() -> None:
    few, many = (paired_difference(*verdicts(0, 0, n, 0), groups=None, resamples=4000, seed=0) for n in (20, 500))
    assert few.value == many.value == 0.0
    assert few.low < many.low < 0 < many.high < few.high < 0.25


def test_mcnemar_without_a_differing_row_is_one() -> None:
    assert mcnemar_p(*verdicts(0, 0, 5, 5)) == 1.0
    assert mcnemar_p(*verdicts(3, 3, 1, 1)) == 1.0
    assert mcnemar_p(*verdicts(6, 0, 1, 1)) == pytest.approx(2 / 2**6)


def test_groups_make_the_interval_wider_and_the_test_a_permutation() -> None:
    a, b = verdicts(gained=40, lost=16, both=100, neither=44)
    # Every group holds four rows of one kind: 50 groups, of which 10 gain and 4 lose.
    groups = [str(row // 4) for row in range(200)]
    alone, together = (compare_verdicts(a, b, given, 10_000, 0) for given in (None, groups))
    assert together.difference.value == alone.difference.value
    width, wider = (found.difference.high - found.difference.low for found in (alone, together))
    assert wider == pytest.approx(2 * width, rel=0.08)
    assert together.p_method == "sign flips of groups"
    assert together.p == pytest.approx(2 * sum(math.comb(14, k) for k in range(5)) / 2**14, abs=0.015)
    assert (together.num_gained, together.num_lost, together.num_rows) == (40, 16, 200)
    assert alone.minimum_detectable_difference is not None
    # 200 rows in groups of one kind are worth 50, up to the one group that the spread is estimated with.
    assert together.minimum_detectable_difference == pytest.approx(minimum_detectable_difference(50, 0.28), rel=0.02)


def test_values_are_compared_as_the_bootstrap_of_their_differences() -> None:
    draw = np.random.default_rng(2)
    a = draw.uniform(size=60)
    b = np.clip(a + draw.normal(0.05, 0.2, size=60), 0, 1)
    groups = [f"g{row // 3}" for row in range(60)]
    found = compare_values(list(a), list(b), groups, 2000, 4, (0.0, 1.0))
    assert found.difference == bootstrap_mean(b - a, groups, 2000, 4, (-1.0, 1.0))
    assert (found.num_gained, found.num_lost, found.num_rows) == (None, None, 60)
    assert found.p_method == "sign flips of groups"
    assert compare_values(list(a), list(b), None, 2000, 4).p_method == "sign flips of rows"


def test_bounds_of_a_metric_are_those_of_its_differences_twice_over() -> None:
    found = compare_values([2.0] * 30, [2.0] * 30, None, 100, 0, (1.0, 5.0)).difference
    share = 1 - 0.025 ** (1 / 30)
    assert (found.low, found.high) == pytest.approx((-4 * share, 4 * share))


def test_few_signs_are_all_turned() -> None:
    steps = [0.5, -0.1, 0.3, 0.0, 0.2, 0.7]
    sums = [
        abs(sum(sign * step for sign, step in zip(signs, steps, strict=True)))
        for signs in itertools.product((1, -1), repeat=6)
    ]
    expected = sum(total >= abs(sum(steps)) - 1e-12 for total in sums) / 64
    assert sign_flip_p(steps, None, 1000, 0) == pytest.approx(expected)
    assert sign_flip_p([1.0, 1.0, 1.0], None, 1000, 0) == 0.25
    assert sign_flip_p([3.0, -1.0, 0.5, 0.5, 1.0], ["a", "a", "b", "b", "c"], 1000, 0) == 0.25


def test_sums_that_are_equal_on_paper_count_as_equal() -> None:
    for signs in itertools.product((1, -1), repeat=4):
        whole = np.array(signs) * [1, 2, 3, 6]
        assert sign_flip_p(whole / 10, None, 100, 0) == sign_flip_p(whole, None, 100, 0)


@pytest.mark.parametrize("digits", [1, 6], ids=["few sizes", "many sizes"])
def test_many_signs_are_drawn(digits: int) -> None:
    steps = np.round(np.random.default_rng(1).normal(0.06, 0.4, size=400), digits)
    scipys = permutation_test((steps, np.zeros(400)), lambda a, b: (a - b).sum(), permutation_type="samples",
                              n_resamples=9999, rng=np.random.default_rng(0), vectorized=False)  # fmt: skip
    found = sign_flip_p(steps, None, 9999, 0)
    assert found == pytest.approx(scipys.pvalue, abs=0.02)
    assert 0.02 < found < 0.5
    assert sign_flip_p(np.abs(steps), None, 999, 0) == 1 / 1000


def test_no_difference_is_no_evidence() -> None:
    assert sign_flip_p([0.0, 0.0], None, 100, 0) == 1.0
    assert sign_flip_p([1.0, -1.0], ["a", "a"], 100, 0) == 1.0


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    num_rows, discordant = 1500, 0.2
    difference = minimum_detectable_difference(num_rows, discordant)
    chances = [(discordant + difference) / 2, (discordant - difference) / 2, 0.5, 0.3]
    draws = np.random.default_rng(11).multinomial(num_rows, chances, size=400)
    found = [mcnemar_p(*verdicts(*counts)) < 0.05 for counts in draws]
    assert 0.72 <= np.mean(found) <= 0.86


def test_the_detectable_mean_difference_is_found_four_times_in_five() -> None:
    draw = np.random.default_rng(3)
    spread = draw.normal(0, 0.3, size=(400, 50)).repeat(4, axis=1) + draw.normal(0, 0.3, size=(400, 200))
    groups = [str(row // 4) for row in range(200)]
    difference = 2.80159 * math.sqrt(0.3**2 / 50 + 0.3**2 / 200)
    sizes = [detectable_mean(steps, groups) for steps in spread]
    assert np.mean([size for size in sizes if size is not None]) == pytest.approx(difference, rel=0.02)
    found = [sign_flip_p(steps + difference, groups, 400, seed) < 0.05 for seed, steps in enumerate(spread)]
    assert 0.72 <= np.mean(found) <= 0.87


def test_the_detectable_difference_solves_its_equation() -> None:
    difference = minimum_detectable_difference(900, 0.15)
    needed = (1.959964 * math.sqrt(0.15) + 0.841621 * math.sqrt(0.15 - difference**2)) ** 2 / difference**2
    assert needed == pytest.approx(900, rel=1e-4)


def test_the_detectable_difference_shrinks_with_rows_and_never_vanishes() -> None:
    assert minimum_detectable_difference(4000, 0.2) == pytest.approx(
        minimum_detectable_difference(1000, 0.2) / 2, rel=0.02
    )
    assert 7 / 1000 < minimum_detectable_difference(1000, 0.0) < 8 / 1000
    assert minimum_detectable_difference(3, 0.5) == 1.0


def test_the_detectable_mean_as_its_formula_has_it() -> None:
    steps = [0.2, -0.1, 0.4, 0.0, 0.1]
    assert detectable_mean(steps, None) == pytest.approx(2.801585 * np.std(steps, ddof=1) / math.sqrt(5), rel=1e-6)
    assert detectable_mean([0.1] * 5, None) is None


def test_the_design_effect_of_copies_is_their_number() -> None:
    steps = [1.0, 0.0, -1.0, 1.0, 0.0] * 8
    groups = [str(row) for row in range(40)]
    assert design_effect(steps, groups) == 1.0
    threefold = design_effect(np.repeat(steps, 3), list(np.repeat(groups, 3)))
    assert threefold == pytest.approx(3 * (119 / 120) / (39 / 40))
    assert design_effect([1.0, -1.0] * 20, list(np.repeat(groups[:20], 2))) == 1.0
    assert design_effect([1.0, 0.0, 1.0], ["a"] * 3) == 3.0


def test_rows_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of one subject, 3 of the other"):
        compare_values([0.1, 0.2], [0.1, 0.2, 0.3], None, 100, 0)
    with pytest.raises(ValueError, match="no row"):
        compare_values([], [], None, 100, 0)
