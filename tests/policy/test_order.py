"""Prompts of like length share a batch, each is asked once, and a seed decides."""

import itertools
import random

from pipelines.policy.order import like_length

DRAW = random.Random(7)
LENGTHS = [DRAW.randint(5, 200) for _ in range(1003)]


def padding(order: list[int], size: int) -> float:
    """The share of a batch that is padding, over all batches."""
    batches = [[LENGTHS[number] for number in order[i : i + size]] for i in range(0, len(order), size)]
    return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)


def test_every_prompt_is_asked_once_and_little_is_padding() -> None:
    order = like_length(LENGTHS, 16, 3)
    assert sorted(order) == list(range(len(LENGTHS)))
    shuffled = random.Random(3).sample(range(len(LENGTHS)), len(LENGTHS))
    assert padding(shuffled, 16) > 0.4
    assert padding(order, 16) < 0.05


def test_a_seed_gives_one_order_and_lengths_come_in_none() -> None:
    order = like_length(LENGTHS, 16, 3)
    assert order == like_length(LENGTHS, 16, 3)
    assert order != like_length(LENGTHS, 16, 4)
    firsts = [LENGTHS[number] for number in order[::16]]
    assert firsts != sorted(firsts)
    assert sum(a < b for a, b in itertools.pairwise(firsts)) < 0.7 * len(firsts)


def test_few_prompts_and_none() -> None:
    assert sorted(like_length([3, 1, 2], 16, 0)) == [0, 1, 2]
    assert like_length([], 16, 0) == []
