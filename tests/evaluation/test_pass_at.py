from itertools import combinations

import pytest

from pipelines.evaluation.pass_at import pass_at_k


@pytest.mark.parametrize(("num_samples", "num_correct"), [(5, 0), (5, 1), (5, 3), (6, 6), (8, 2)])
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(num_samples: int, num_correct: int) -> None:
    verdicts = [position < num_correct for position in range(num_samples)]
    for k in range(1, num_samples + 1):
        chosen = list(combinations(verdicts, k))
        assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))


def test_many_samples_neither_overflow_nor_leave_the_range() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)
    assert pass_at_k(100_000, 30, 2) == pytest.approx(2 * 30 / 100_000, rel=1e-3)
    assert pass_at_k(10_000, 9_000, 1_001) == 1.0


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)])
def test_impossible_counts_are_refused(num_samples: int, num_correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= correct <= samples"):
        pass_at_k(num_samples, num_correct, k)
