import math

import pytest
from scipy.stats import binom

from pipelines.dataset.row import Row
from pipelines.errors import DataError
from pipelines.evaluation.answer import Answer, answers_table
from pipelines.evaluation.score import DEFINITIONS, score
from pipelines.interval import wilson

DECLINE = "out_of_scope"
Labelled = tuple[list[Row], dict[str, list[Answer]]]


def wilson_by_formula(successes: int, trials: int) -> tuple[float, float]:
    """Wilson (1927), with z = 1.959964 for 95 %."""
    z, share = 1.959963984540054, successes / trials
    center = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return (center - spread) / (1 + z * z / trials), (center + spread) / (1 + z * z / trials)


def test_every_metric_of_the_base_as_counted_by_hand(labelled: Labelled) -> None:
    rows, answers = labelled
    metrics = score(rows, answers["base"], DECLINE)
    rates = {
        "accuracy": (2, 8),
        "decline_rate": (1, 2),
        "over_refusal_rate": (1, 8),
        "unparsed_rate": (2, 10),
        "unfinished_rate": (2, 10),
    }
    expected: dict[str, float] = {"num_in_scope": 8, "num_out_of_scope": 2, "mean_tokens": 54 / 10}
    for name, (successes, trials) in rates.items():
        low, high = wilson_by_formula(successes, trials)
        expected |= {name: successes / trials, f"{name}_low": low, f"{name}_high": high}
    assert metrics == pytest.approx(expected)


def test_the_adapter_as_counted_by_hand(labelled: Labelled) -> None:
    rows, answers = labelled
    metrics = score(rows, answers["adapter"], DECLINE)
    assert metrics["accuracy"] == pytest.approx(6 / 8)
    assert metrics["decline_rate"] == 1.0
    assert metrics["decline_rate_high"] == 1.0
    assert metrics["over_refusal_rate"] == 0.0
    assert metrics["over_refusal_rate_low"] == 0.0


def test_a_metric_without_rows_is_left_out(labelled: Labelled) -> None:
    rows, answers = labelled
    inside = score(rows[:8], answers["base"][:8], DECLINE)
    assert "decline_rate" not in inside
    assert "over_refusal_rate" in inside
    outside = score(rows[8:], answers["base"][8:], DECLINE)
    assert "accuracy" not in outside
    assert "over_refusal_rate" not in outside
    assert score([], [], DECLINE) == {"num_in_scope": 0, "num_out_of_scope": 0}


def test_without_a_decline_label_every_row_is_in_scope(labelled: Labelled) -> None:
    rows, answers = labelled
    metrics = score(rows, answers["base"], None)
    assert metrics["num_in_scope"] == 10
    assert metrics["accuracy"] == pytest.approx(3 / 10)
    assert not {"decline_rate", "over_refusal_rate"} & set(metrics)


def test_every_metric_is_defined(labelled: Labelled) -> None:
    rows, answers = labelled
    names = {name.removesuffix("_low").removesuffix("_high") for name in score(rows, answers["base"], DECLINE)}
    assert names == set(DEFINITIONS)


def test_answers_of_other_rows_are_refused(labelled: Labelled) -> None:
    rows, answers = labelled
    with pytest.raises(DataError, match="10 rows, got 9 answers"):
        score(rows, answers["base"][:9], DECLINE)
    swapped = [answers["base"][1], answers["base"][0], *answers["base"][2:]]
    with pytest.raises(DataError, match="answer 0 belongs to row 'r1', expected row 'r0'"):
        score(rows, swapped, DECLINE)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 40), (1, 40), (20, 40), (39, 40), (40, 40), (7, 3080)])
def test_wilson_is_the_published_formula(successes: int, trials: int) -> None:
    interval = wilson(successes, trials)
    low, high = wilson_by_formula(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.93])
def test_wilson_covers_the_true_rate(rate: float) -> None:
    intervals = [wilson(k, 60) for k in range(61)]
    chance = sum(binom.pmf(k, 60, rate) for k, i in enumerate(intervals) if i.low <= rate <= i.high)
    assert 0.925 <= chance <= 0.98


def test_the_answers_table_is_flat_and_complete(labelled: Labelled) -> None:
    rows, answers = labelled
    table = answers_table(rows, answers)
    assert len(table) == 10
    assert table[3] == {
        "row_id": "r3",
        "source": "demo.csv:5",
        "label": "a",
        "prompt": "query 3",
        "expected": "a",
        "base": "out_of_scope",
        "base_correct": False,
        "adapter": "b",
        "adapter_correct": False,
    }
    assert [record["adapter_correct"] for record in table] == [True] * 3 + [False] + [True] * 2 + [False] + [True] * 3
