import math

import numpy as np
import pytest

from pipelines.evaluation.compare import (
    DEFINITIONS,
    compare,
    mcnemar_p,
    minimum_detectable_difference,
    paired_difference,
)


def verdicts(gained: int, lost: int, both: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [False] * gained + [True] * lost + [True] * both + [False] * neither
    b = [True] * gained + [False] * lost + [True] * both + [False] * neither
    return a, b


def test_difference_and_counts_as_counted_by_hand() -> None:
    comparison = compare(*verdicts(gained=8, lost=2, both=20, neither=10), resamples=2000, seed=0)
    assert comparison.difference.value == pytest.approx(6 / 40)
    assert (comparison.num_gained, comparison.num_lost) == (8, 2)
    assert comparison.mcnemar_p == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert comparison.minimum_detectable_difference == minimum_detectable_difference(40, 10 / 40)
    assert comparison.difference.low < 6 / 40 < comparison.difference.high


def test_every_metric_is_defined_and_finite() -> None:
    metrics = compare(*verdicts(0, 0, 5, 0), resamples=100, seed=0).metrics()
    assert {name.removesuffix("_low").removesuffix("_high") for name in metrics} == set(DEFINITIONS)
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = verdicts(60, 40, 300, 101)
    first = paired_difference(a, b, resamples=200, seed=1)
    assert first == paired_difference(a, b, resamples=200, seed=1)
    assert first != paired_difference(a, b, resamples=200, seed=2)


def test_swapping_the_subjects_turns_the_sign() -> None:
    a, b = verdicts(60, 40, 300, 101)
    there, back = paired_difference(a, b, 20_000, 0), paired_difference(b, a, 20_000, 0)
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high, abs=0.004)


def test_the_multinomial_draw_is_the_bootstrap_over_rows() -> None:
    a, b = verdicts(30, 12, 100, 58)
    steps = np.array(b, dtype=float) - np.array(a, dtype=float)
    picks = np.random.default_rng(5).integers(0, len(steps), size=(20_000, len(steps)))
    low, high = np.quantile(steps[picks].mean(axis=1), [0.025, 0.975])
    interval = paired_difference(a, b, resamples=20_000, seed=3)
    # Differences of resamples lie on a grid of 1/200; Monte-Carlo error may shift a bound by one step.
    assert interval.low == pytest.approx(low, abs=0.0051)
    assert interval.high == pytest.approx(high, abs=0.0051)


def test_the_interval_covers_the_true_difference() -> None:
    draw = np.random.default_rng(7)
    covered = 0
    for seed in range(300):
        gained, lost, both, neither = draw.multinomial(250, [0.2, 0.1, 0.5, 0.2])
        interval = paired_difference(*verdicts(gained, lost, both, neither), resamples=500, seed=seed)
        covered += interval.low <= 0.1 <= interval.high
    assert 0.9 <= covered / 300 <= 0.985


def test_mcnemar_without_a_differing_row_is_one() -> None:
    assert mcnemar_p(*verdicts(0, 0, 5, 5)) == 1.0
    assert mcnemar_p(*verdicts(3, 3, 1, 1)) == 1.0
    assert mcnemar_p(*verdicts(6, 0, 1, 1)) == pytest.approx(2 / 2**6)


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    num_rows, discordant = 1500, 0.2
    difference = minimum_detectable_difference(num_rows, discordant)
    chances = [(discordant + difference) / 2, (discordant - difference) / 2, 0.5, 0.3]
    draws = np.random.default_rng(11).multinomial(num_rows, chances, size=400)
    found = [mcnemar_p(*verdicts(*counts)) < 0.05 for counts in draws]
    assert 0.72 <= np.mean(found) <= 0.86


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
