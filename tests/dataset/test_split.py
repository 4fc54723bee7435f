"""Splits keep shares, groups and clusters, and move no row without need."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from pipelines.dataset.split import Clusters, by_hash, by_time, matched, sample, stratified
from pipelines.tasks.rows import short_hash


@dataclass(frozen=True)
class Made:
    """A row as a split sees it."""

    key: str
    label: str
    group: str
    time: float = 0.0


def make(labels: int, each: int) -> list[Made]:
    keys = [(f"{label}-{n}", f"label_{label}") for label in range(labels) for n in range(each)]
    return [Made(key, label, key) for key, label in keys]


def clusters_of(rows: list[Made]) -> tuple[Clusters, list[str]]:
    labels = list(dict.fromkeys(row.label for row in rows))
    groups = list(dict.fromkeys(row.group for row in rows))
    name = np.array([int(short_hash(row.group), 16) for row in rows], np.uint64)
    label = np.array([labels.index(row.label) for row in rows])
    return Clusters.of(np.array([groups.index(row.group) for row in rows]), name, label), labels


def split(rows: list[Made], share: float, seed: int) -> tuple[set[str], set[str]]:
    """Keys of the rows that stay and of those that are taken, stratified."""
    clusters, labels = clusters_of(rows)
    taken = stratified(clusters, labels, share, seed, "split")
    keys = [row.key for row in rows]
    return {k for k, t in zip(keys, taken, strict=True) if not t}, {k for k, t in zip(keys, taken, strict=True) if t}


def hashed(rows: list[Made], share: float, seed: int) -> set[str]:
    taken = by_hash(clusters_of(rows)[0], share, seed, "heldout")
    return {row.key for row, t in zip(rows, taken, strict=True) if t}


def test_each_label_gives_its_share_give_or_take_one() -> None:
    _, taken = split(make(10, 45), 0.1, seed=1)
    assert set(Counter(key.partition("-")[0] for key in taken).values()) == {4, 5}


def test_small_labels_give_their_share_together() -> None:
    assert 60 <= len(split(make(200, 8), 0.05, seed=1)[1]) <= 100


def test_a_label_keeps_a_row() -> None:
    rows = make(50, 2) + [Made(f"single-{n}", f"single_{n}", f"single-{n}") for n in range(50)]
    stay, taken = split(rows, 0.9, seed=3)
    label_of = {row.key: row.label for row in rows}
    assert {label_of[key] for key in stay} == {row.label for row in rows}
    assert len(taken) > 40


@pytest.mark.parametrize("take", [lambda rows: split(rows, 0.2, 5)[1], lambda rows: hashed(rows, 0.2, 5)])
def test_order_makes_no_difference(take: Callable[[list[Made]], set[str]]) -> None:
    rows = make(6, 30)
    assert take(rows) == take(random.Random(0).sample(rows, len(rows)))
    assert take(rows)


def test_the_seed_decides() -> None:
    rows = make(6, 30)
    assert split(rows, 0.2, 1)[1] != split(rows, 0.2, 2)[1]
    assert hashed(rows, 0.2, 1) != hashed(rows, 0.2, 2)


def test_rows_of_another_label_move_nothing() -> None:
    rows = make(6, 30)
    more = [Made(f"new-{n}", "new", f"new-{n}") for n in range(100)]
    before, after = (split(given, 0.2, seed=5)[1] for given in (rows, rows + more))
    assert before == {key for key in after if not key.startswith("new")}


def test_a_row_of_the_same_label_moves_one_at_most() -> None:
    rows = make(1, 100)
    before = split(rows, 0.2, seed=5)[1]
    for n in range(20):
        after = split([*rows, Made(f"new-{n}", "label_0", f"new-{n}")], 0.2, seed=5)[1]
        assert len(before - after) <= 1
        assert len(after - before) <= 1


def test_by_hash_no_row_ever_moves() -> None:
    rows = make(6, 200)
    before, after = hashed(rows[:700], 0.2, 5), hashed(rows, 0.2, 5)
    assert before == {key for key in after if key in {row.key for row in rows[:700]}}
    assert len(after) == pytest.approx(240, abs=50)


def test_groups_stay_together() -> None:
    rows = [Made(f"{n}", f"label_{n % 2}", f"group {n // 4 * 2 + n % 2}") for n in range(400)]
    group_of = {row.key: row.group for row in rows}
    stay, taken = split(rows, 0.3, seed=1)
    assert taken
    assert not {group_of[key] for key in stay} & {group_of[key] for key in taken}


def test_a_group_with_two_labels_is_not_taken() -> None:
    rows = [Made(f"{n}", f"label_{n % 2}", f"group {n // 2}") for n in range(100)]
    assert split(rows, 0.5, seed=1)[1] == set()


def test_no_share_is_no_row() -> None:
    assert split(make(3, 10), 0.0, seed=1)[1] == set()


def times(rows: list[Made], share: float, after: float | None) -> list[float]:
    taken = by_time(clusters_of(rows)[0], np.array([row.time for row in rows]), share, after)
    return sorted(row.time for row, t in zip(rows, taken, strict=True) if t)


def test_by_time_the_newest_are_taken_and_a_group_goes_with_its_newest_row() -> None:
    rows = [Made(f"{n}", "", f"{n}", float(n)) for n in range(1, 101)]
    assert times(rows, 0.1, None) == [float(n) for n in range(91, 101)]
    assert times(rows, 0.1, 95.0) == [float(n) for n in range(95, 101)]
    old = Made("old", "", "100", 2.5)
    assert times([*rows, old], 0.1, 95.0) == [2.5, *[float(n) for n in range(95, 101)]]


def test_matched_gives_the_shares_that_are_asked() -> None:
    rows = make(3, 100)
    clusters, labels = clusters_of(rows)
    shares = {labels.index("label_0"): 0.7, labels.index("label_2"): 0.3}
    taken = matched(clusters, shares, 50, 1, "heldout")
    assert Counter(row.label for row, t in zip(rows, taken, strict=True) if t) == {"label_0": 35, "label_2": 15}


def test_a_sample_is_seeded_and_grows_by_need_only() -> None:
    ids = np.array([int(short_hash(str(n)), 16) for n in range(300)], np.uint64)
    small, large = (set(sample(ids, count, seed=1).tolist()) for count in (20, 50))
    assert (len(small), len(large)) == (20, 50)
    assert small < large
    assert small != set(sample(ids, 20, seed=2).tolist())
    assert len(set(sample(ids[:250], 20, seed=1).tolist()) - small) <= 20 * 50 // 300 + 5


def test_of_few_rows_the_newest_is_taken() -> None:
    rows = [Made(f"{n}", "", f"{n}", float(n)) for n in range(1, 4)]
    assert times(rows, 0.1, None) == [3.0]
