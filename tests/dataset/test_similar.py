"""Near-duplicates: against brute force on real queries, whatever the batches, and within the bound of large buckets."""

import csv
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.config.paths import PROJECT
from pipelines.dataset.normal import normalised, text_hash
from pipelines.dataset.shingles import jaccard, shingles
from pipelines.dataset.similar import HEADS, NEIGHBOURS, Clusters, Pair, Signatures, similar_pairs

THRESHOLD = 0.6


def signatures(folder: Path, texts: list[str], batch: int = 1000, threshold: float = THRESHOLD) -> Signatures:
    made = Signatures(folder, threshold, seed=3)
    for at in range(0, len(texts), batch):
        made.add(texts[at : at + batch])
    made.close()
    return made


def reader(texts: list[str]) -> Callable[[npt.NDArray[np.int64]], list[str]]:
    return lambda rows: [texts[row] for row in rows.tolist()]


def everyone(texts: list[str]) -> npt.NDArray[np.bool_]:
    return np.ones(len(texts), dtype=bool)


def candidates(made: Signatures, considered: npt.NDArray[np.bool_]) -> list[tuple[int, ...]]:
    return [tuple(pair) for pairs in made.candidates(considered) for pair in pairs.tolist()]


@pytest.fixture(scope="module")
def queries() -> list[str]:
    with (PROJECT / "data/banking77/test.csv").open(encoding="utf-8") as file:
        return [normalised(row["text"]) for row in csv.DictReader(file)][:2000]


@pytest.fixture(scope="module")
def true_pairs(queries: list[str]) -> dict[tuple[int, int], float]:
    sets = [shingles(query) for query in queries]
    found = {}
    for first, second in combinations(range(len(sets)), 2):
        shared = len(sets[first] & sets[second])
        similarity = shared / (len(sets[first]) + len(sets[second]) - shared)
        if similarity >= THRESHOLD:
            found[first, second] = similarity
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Where's MY card?!", "wheres my card"),
        ("Crème brûlée — “Ⅳ”", "creme brulee iv"),
        ("STRASSE, straße", "strasse strasse"),
        ("it is -5, not 5", "it is \u22125 not 5"),
        ("7 * 5 = 7*5", "7 * 5 = 7*5"),
        ("?!", "?!"),
        ("", ""),
        ("हिन्दी", "हिन्दी"),
    ],
)
def test_the_same_text(text: str, expected: str) -> None:
    assert normalised(text) == expected
    assert normalised(normalised(text)) == expected


def test_a_texts_hash_is_the_same_everywhere() -> None:
    assert text_hash("where is my card") == 4097359860600774221
    assert text_hash("\ud800") != text_hash("\ud801")


def test_similarity_is_shared_over_all_threes_of_letters() -> None:
    assert shingles("card") == {" ca", "car", "ard", "rd "}
    assert jaccard("card", "cart") == pytest.approx(2 / 6)
    assert jaccard("", "") == 1.0
    assert jaccard("a", "b") == 0.0


def test_finds_what_brute_force_finds(
    tmp_path: Path, queries: list[str], true_pairs: dict[tuple[int, int], float]
) -> None:
    made = signatures(tmp_path, queries)
    found = list(similar_pairs(made, reader(queries), THRESHOLD, everyone(queries)))
    by_rows = {(pair.first, pair.second): pair.similarity for pair in found}
    assert len(by_rows) == len(found) > 150
    assert by_rows.items() <= true_pairs.items()
    assert len(by_rows) >= 0.99 * len(true_pairs)


def test_batch_size_changes_nothing(tmp_path: Path, queries: list[str]) -> None:
    few = queries[:500]
    made = [signatures(tmp_path / str(batch), few, batch) for batch in (7, 500)]
    first, second = (candidates(each, everyone(few)) for each in made)
    assert len(first) > 100
    assert first == second


def test_each_candidate_comes_once_and_in_order(tmp_path: Path, queries: list[str]) -> None:
    found = candidates(signatures(tmp_path, queries), everyone(queries))
    assert len(set(found)) == len(found)
    assert all(first < second for first, second in found)


def test_only_rows_considered_and_pairs_of_one_group(tmp_path: Path, queries: list[str]) -> None:
    twice = queries[:300] * 2
    made = signatures(tmp_path, twice)
    even = np.arange(600) % 2 == 0
    assert {row % 2 for pair in candidates(made, even) for row in pair} == {0}
    halves = np.repeat(np.array([0, 1], dtype=np.int32), 300)
    grouped = [pair for pairs in made.candidates(everyone(twice), halves) for pair in pairs.tolist()]
    assert grouped
    assert all((first < 300) == (second < 300) for first, second in grouped)


def test_equal_texts_are_candidates(tmp_path: Path, queries: list[str]) -> None:
    texts = [*queries[:200], queries[7], "", ""]
    made = signatures(tmp_path, texts)
    assert {(7, 200), (201, 202)} <= set(candidates(made, everyone(texts)))
    pairs = list(similar_pairs(made, reader(texts), THRESHOLD, everyone(texts)))
    assert {Pair(7, 200, 1.0), Pair(201, 202, 1.0)} <= set(pairs)


def test_a_templated_bucket_costs_a_bounded_number_of_pairs(tmp_path: Path) -> None:
    template = "could you please tell me what has become of the parcel that i ordered under the number"
    texts = [f"{template} {number:04}" for number in range(3000)]
    made = signatures(tmp_path, texts, threshold=0.8)
    found = candidates(made, everyone(texts))
    assert len(set(found)) == len(found) <= (HEADS + NEIGHBOURS) * len(texts) * 19
    clusters = Clusters(len(texts))
    pairs = list(similar_pairs(made, reader(texts), 0.8, everyone(texts), clusters=clusters))
    assert len(pairs) == len(texts) - 1
    assert not clusters.numbers().any()


def test_a_bucket_of_equal_texts_keeps_its_bound(tmp_path: Path) -> None:
    texts = ["where is my card"] * 500
    found = candidates(signatures(tmp_path, texts), everyone(texts))
    assert len(found) == sum(min(row, HEADS + NEIGHBOURS) for row in range(500))


def test_clusters_are_named_by_their_first_row() -> None:
    pairs = [Pair(4, 5, 1.0), Pair(1, 4, 1.0), Pair(0, 2, 1.0), Pair(3, 6, 1.0), Pair(5, 6, 1.0)]
    for given in (pairs, pairs[::-1]):
        clusters = Clusters(8)
        assert all(clusters.join(pair.first, pair.second) for pair in given)
        assert clusters.numbers().tolist() == [0, 1, 0, 1, 1, 1, 1, 7]
