"""Shared word n-grams and lightly edited copies, against counts known from elsewhere and from brute force."""

import csv
import json
import random
import re
from math import inf
from pathlib import Path

import pytest

from pipelines.config.paths import PROJECT
from pipelines.dataset.contamination import Match, NgramIndex
from pipelines.dataset.near_copy import ONE_WORD, SHORT_WORD, TWO_WORDS, Near, NearIndex, enough
from pipelines.dataset.normal import normalised
from pipelines.dataset.shingles import jaccard, jaccard_of, shingles


def questions(part: str) -> list[str]:
    lines = (PROJECT / f"data/gsm8k/{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def queries(part: str) -> list[str]:
    with Path(PROJECT / f"data/banking77/{part}.csv").open(encoding="utf-8") as file:
        return [normalised(row["text"]) for row in csv.DictReader(file)]


def ngrams(text: str, size: int) -> list[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [" ".join(words[at : at + size]) for at in range(len(words) - size + 1)]


@pytest.fixture(scope="module")
def heldout() -> list[str]:
    return queries("test")


@pytest.fixture(scope="module")
def near(heldout: list[str]) -> NearIndex:
    index = NearIndex(0.7, seed=3)
    index.add(heldout)
    return index


def test_gsm8k_counts() -> None:
    test = questions("test")
    index = NgramIndex([13, 8])
    index.add(test[:700])
    index.add(test[700:])
    found = index.matches(questions("train"))
    assert [sum(size in matches for matches in found) for size in (8, 13)] == [94, 4]
    for matches in found:
        for size, match in matches.items():
            assert match.text in ngrams(test[match.row], size)


def test_every_size_as_brute_force_finds_it() -> None:
    protected, asked = queries("test")[:400], queries("train")[:400]
    for size in (1, 2, 4):
        index = NgramIndex([size])
        index.add(protected)
        first: dict[str, int] = {}
        for row, text in enumerate(protected):
            for words in ngrams(text, size):
                first.setdefault(words, row)
        for text, matches in zip(asked, index.matches(asked), strict=True):
            shared = next((words for words in ngrams(text, size) if words in first), None)
            assert matches.get(size) == (None if shared is None else Match(first[shared], shared))


def test_no_ngram_reaches_over_the_end_of_a_text() -> None:
    index = NgramIndex([3])
    index.add(["one two", "three four", "Five, SIX: seven!"])
    assert index.matches(["one two three four", "", "two", "x five six seven x", "five six x seven"]) == [
        {},
        {},
        {},
        {3: Match(2, "five six seven")},
        {},
    ]
    assert index.matches([]) == []
    assert NgramIndex([3]).matches(["one two three"]) == [{}]


def test_what_is_added_later_is_found_too() -> None:
    index = NgramIndex([2])
    index.add(["a b"])
    assert index.matches(["c d"]) == [{}]
    index.add(["b c d"])
    assert index.matches(["c d"]) == [{2: Match(1, "c d")}]


@pytest.mark.parametrize(
    ("edited", "expected"),
    [
        ("please where is my new card", ONE_WORD),
        ("hi where is my old card please", SHORT_WORD),
        ("where is my new crad", SHORT_WORD),
        ("where is my old card", SHORT_WORD),
        ("where is my card", ONE_WORD),
        ("where is my brand new card", ONE_WORD),
        ("where the hell is my new card", TWO_WORDS),
        ("where is my shiny golden card", TWO_WORDS),
        ("excuse me where is my new card", TWO_WORDS),
        ("where is our own card", inf),
        ("now where is my new cards", inf),
        ("", inf),
    ],
)
def test_how_alike_is_enough(edited: str, expected: float) -> None:
    assert enough("where is my new card", edited) == expected
    assert enough(edited, "where is my new card") == expected


def test_a_changed_word_says_less_in_a_longer_text() -> None:
    text = "where is the new card that i ordered"
    assert enough(text, text.replace("card", "phone")) == ONE_WORD
    assert enough("where is my new card now", "where is my new phone now") == SHORT_WORD


@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_near_copies_are_those_of_brute_force(heldout: list[str], threshold: float) -> None:
    protected, asked = heldout[:400], queries("train")[:300]
    sets = [shingles(text) for text in protected]
    index = NearIndex(threshold, seed=3)
    index.add(protected)
    found = index.matches(asked)
    expected: list[Near | None] = []
    for text in asked:
        alike = [Near(row, jaccard_of(shingles(text), other)) for row, other in enumerate(sets)]
        copies = [near for near in alike if near.similarity >= min(threshold, enough(text, protected[near.row]))]
        expected.append(min(copies, key=lambda near: (-near.similarity, near.row), default=None))
    assert sum(near is not None for near in expected) > 10
    assert found == expected


def test_a_verbatim_copy_names_its_first_row(heldout: list[str], near: NearIndex) -> None:
    assert near.matches(heldout) == [Near(heldout.index(text), 1.0) for text in heldout]


def test_a_changed_word_is_found_wherever_it_stands(heldout: list[str], near: NearIndex) -> None:
    random_ = random.Random(3)
    edited = []
    for text in heldout:
        words = text.split()
        words[random_.randrange(len(words))] = "zebra"
        edited.append(" ".join(words))
    found = near.matches(edited)
    for text, original, copy in zip(edited, heldout, found, strict=True):
        assert copy is not None or jaccard(text, original) < enough(text, original), text
        assert copy is None or copy.similarity >= ONE_WORD


def test_other_domains_raise_no_alarm(near: NearIndex) -> None:
    assert sum(copy is not None for copy in near.matches([normalised(text) for text in questions("train")])) == 0


def test_nothing_protected_and_nothing_asked(near: NearIndex) -> None:
    assert NearIndex(0.7, seed=3).matches(["where is my card"]) == [None]
    assert near.matches([]) == []
    assert near.matches([""]) == [None]
