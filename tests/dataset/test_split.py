"""The validation split keeps shares and groups, and moves no row without need."""

import random
from collections import Counter

from pipelines.dataset.row import Row
from pipelines.dataset.split import sample, split_validation


def make_row(key: str, label: str, group: str | None = None) -> Row:
    prompt = [{"role": "user", "content": key}]
    completion = [{"role": "assistant", "content": label}]
    return Row(key, "toy", prompt, completion, label, label, "toy.csv:1", group or key)


def make_rows(labels: int, each: int) -> list[Row]:
    return [make_row(f"{label}-{n}", f"label_{label}") for label in range(labels) for n in range(each)]


def ids(rows: list[Row]) -> set[str]:
    return {row.id for row in rows}


def test_every_row_goes_to_exactly_one_side() -> None:
    rows = make_rows(10, 40)
    train, validation = split_validation(rows, 0.1, seed=1)
    assert sorted(row.id for row in train + validation) == sorted(ids(rows))


def test_each_label_gives_its_share_give_or_take_one() -> None:
    _, validation = split_validation(make_rows(10, 45), 0.1, seed=1)
    counts = Counter(row.label for row in validation)
    assert set(counts.values()) == {4, 5}


def test_small_labels_give_their_share_together() -> None:
    _, validation = split_validation(make_rows(200, 8), 0.05, seed=1)
    assert 60 <= len(validation) <= 100


def test_a_label_keeps_a_row_in_train() -> None:
    rows = make_rows(50, 2) + [make_row(f"single-{n}", f"single_{n}") for n in range(50)]
    train, validation = split_validation(rows, 0.9, seed=3)
    assert {row.label for row in train} == {row.label for row in rows}
    assert len(validation) > 40


def test_order_makes_no_difference() -> None:
    rows = make_rows(6, 30)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert split_validation(rows, 0.2, seed=5) == split_validation(shuffled, 0.2, seed=5)


def test_the_seed_decides() -> None:
    rows = make_rows(6, 30)
    first, second = (ids(split_validation(rows, 0.2, seed)[1]) for seed in (1, 2))
    assert first != second


def test_rows_of_another_label_move_nothing() -> None:
    rows = make_rows(6, 30)
    more = rows + [make_row(f"new-{n}", "new") for n in range(100)]
    before, after = (ids(split_validation(given, 0.2, seed=5)[1]) for given in (rows, more))
    assert before == {key for key in after if not key.startswith("new")}


def test_a_row_of_the_same_label_moves_one_at_most() -> None:
    rows = make_rows(1, 100)
    before = ids(split_validation(rows, 0.2, seed=5)[1])
    for n in range(20):
        after = ids(split_validation([*rows, make_row(f"new-{n}", "label_0")], 0.2, seed=5)[1])
        assert len(before - after) <= 1
        assert len(after - before) <= 1


def test_groups_stay_together() -> None:
    rows = [make_row(f"{n}", f"label_{n % 2}", group=f"group {n // 4 * 2 + n % 2}") for n in range(400)]
    train, validation = split_validation(rows, 0.3, seed=1)
    assert validation
    assert not {row.group for row in train} & {row.group for row in validation}


def test_a_group_with_two_labels_stays_in_train() -> None:
    rows = [make_row(f"{n}", f"label_{n % 2}", group=f"group {n // 2}") for n in range(100)]
    train, validation = split_validation(rows, 0.5, seed=1)
    assert (len(train), len(validation)) == (100, 0)


def test_no_share_is_no_validation() -> None:
    assert split_validation(make_rows(3, 10), 0.0, seed=1)[1] == []


def test_a_sample_is_seeded_and_grows_by_need_only() -> None:
    rows = make_rows(1, 300)
    small, large = ids(sample(rows, 20, seed=1)), ids(sample(rows[::-1], 50, seed=1))
    assert (len(small), len(large)) == (20, 50)
    assert small < large
    assert small != ids(sample(rows, 20, seed=2))
    assert len(ids(sample(rows[:250], 20, seed=1)) - small) <= 20 * 50 // 300 + 5
