"""Sets of letters in threes: how alike two texts are, exactly and as MinHash signatures.

Of 2, 3, 4 and 5 letters, inside words and across, three across words found lightly edited support queries with the
fewest false alarms (`benchmarks/data_planted.py`): longer ones lose a query of six words to one swapped word,
shorter ones, and those that don't see the order of words, find queries alike that share little but `how do i`.
MinHash and banding: Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

Hashes = npt.NDArray[np.uint64]
Number = TypeVar("Number", bound=np.generic)
SIZE = 3
NUM_HASHES = 128
MISSED = 0.004
BATCH = 2048
_NEWLINE = ord("\n")
_SKETCH_DEVIATIONS = 3
_ROW_BITS = np.uint64(52)
_MOST_LETTERS = 500_000
SLACK = 1e-6


def shingles(text: str) -> frozenset[str]:
    """The runs of three letters of a normalised text, a space before and after it included."""
    padded = f" {text} "
    return frozenset([padded[at : at + SIZE] for at in range(max(1, len(padded) - SIZE + 1))])


def jaccard_of(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared shingles over all shingles of two sets that aren't empty, 0..1."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def jaccard(first: str, second: str) -> float:
    """How alike two normalised texts are, 0..1: exactly, without a hash."""
    return jaccard_of(shingles(first), shingles(second))


def distinct(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The different numbers in order; on many numbers several times as fast as np.unique, which hashes."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def screened(texts: Sequence[str], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The similarity of pairs (n, 2) of places in `texts`, by hashes of the shingles.

    Fast, and wrong only where two of some hundred hashes of 52 bits collide.
    """
    if not len(pairs):
        return np.empty(0)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    # Texts may be whole documents, so a part is bounded by its letters as well.
    of_part = np.arange(len(pairs)) // BATCH + np.cumsum(lengths[pairs].sum(axis=1)) // _MOST_LETTERS
    found = []
    for part in np.split(pairs, np.flatnonzero(of_part[1:] != of_part[:-1]) + 1):
        used, local = np.unique(part, return_inverse=True)
        found.append(_screened([texts[place] for place in used.tolist()], local.reshape(-1, 2)))
    return np.concatenate(found)


def _screened(texts: Sequence[str], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    codes, _ = _codes(texts)
    row = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(text) for text in texts])
    rowwise = distinct((row << _ROW_BITS) | (codes >> np.uint64(64) - _ROW_BITS))
    sizes = np.bincount((rowwise >> _ROW_BITS).astype(np.int64), minlength=len(texts))
    begins = np.cumsum(sizes) - sizes
    counts = sizes[pairs].ravel()
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    hashes = rowwise[np.repeat(begins[pairs].ravel(), counts) + within] & ((np.uint64(1) << _ROW_BITS) - np.uint64(1))
    of_pair = np.repeat(np.arange(len(pairs), dtype=np.uint64), counts.reshape(-1, 2).sum(axis=1))
    keys = np.sort((of_pair << _ROW_BITS) | hashes)
    twice = keys[1:][keys[1:] == keys[:-1]] >> _ROW_BITS
    shared = np.bincount(twice.astype(np.int64), minlength=len(pairs))
    either = sizes[pairs].sum(axis=1) - shared
    return np.where(either > 0, shared / np.maximum(either, 1), 1.0)


def mixed(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele et al. 2014): neighbouring numbers become unlike hashes."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _codes(texts: Sequence[str]) -> tuple[Hashes, Hashes]:
    """Every text's shingles as hashes, one text after another, and where each begins, (texts + 1,)."""
    joined = "\n".join([f" {text} " for text in texts])
    letters = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    codes = letters[:-2] | (letters[1:-1] << np.uint64(21)) | (letters[2:] << np.uint64(42))
    ends = letters == _NEWLINE
    inside = ~(ends[:-2] | ends[1:-1] | ends[2:])
    starts = np.zeros(len(texts) + 1, dtype=np.uint64)
    np.cumsum([len(text) for text in texts], out=starts[1:])
    return mixed(codes[inside]), starts


@dataclass(frozen=True)
class Banding:
    """How a signature is cut: two texts are candidates where one band of `rows` hashes is equal."""

    bands: int
    rows: int
    seed: int
    least_equal: int

    def of(self, texts: Sequence[str]) -> tuple[Hashes, Hashes]:
        """Of normalised texts the hash of every band, (texts, bands), and the sketch, (texts, 4).

        The sketch is two bits of each of 128 MinHashes (Li and König 2010): all first ones, then all second ones.
        """
        parts = [self._of_batch(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        if not parts:
            return np.empty((0, self.bands), dtype=np.uint64), np.empty((0, 4), dtype=np.uint64)
        return np.concatenate([bands for bands, _ in parts]), np.concatenate([sketch for _, sketch in parts])

    def _of_batch(self, texts: Sequence[str]) -> tuple[Hashes, Hashes]:
        codes, starts = _codes(texts)
        digests = RMinHash.digest_matrix_from_flat_token_hashes(codes, starts, NUM_HASHES, self.seed)
        matrix = np.array(digests.to_rows(), dtype=np.uint32)
        low = [((matrix >> bit) & 1).astype(np.uint8) for bit in range(2)]
        sketch = np.packbits(np.concatenate(low, axis=1), axis=1).view(np.uint64)
        banded = matrix[:, : self.bands * self.rows].reshape(len(texts), self.bands, self.rows)
        hashes = np.zeros((len(texts), self.bands), dtype=np.uint64)
        for row in range(self.rows):
            hashes = mixed(hashes * np.uint64(31) + banded[:, :, row] + np.uint64(row + 1))
        return hashes, sketch

    def may_be_similar(self, first: Hashes, second: Hashes) -> npt.NDArray[np.bool_]:
        """Which pairs of sketches, (n, 4) each, leave it open that the texts are as alike as asked."""
        unlike = first ^ second
        unequal = np.bitwise_count(unlike[:, :2] | unlike[:, 2:]).sum(axis=1, dtype=np.int64)
        return unequal <= NUM_HASHES - self.least_equal


def banding(threshold: float, seed: int) -> Banding:
    """The longest bands that miss at most 0.4 % of the pairs whose similarity is just `threshold`.

    Long bands make few false candidates. The sketch rejects a pair three standard deviations below the
    equal pairs of bits that `threshold` lets expect.
    """
    fits = [(rows, _bands(threshold, rows)) for rows in range(1, NUM_HASHES + 1)]
    rows, bands = max(((rows, bands) for rows, bands in fits if rows * bands <= NUM_HASHES), default=(1, NUM_HASHES))
    equal = (1 + 3 * threshold) / 4
    deviation = float(np.sqrt(NUM_HASHES * equal * (1 - equal)))
    return Banding(bands, rows, seed, int(NUM_HASHES * equal - _SKETCH_DEVIATIONS * deviation))


def _bands(threshold: float, rows: int) -> int:
    """How many bands of so many rows miss little enough."""
    equal = min(threshold**rows, 1 - 1e-9)
    return int(np.ceil(np.log(MISSED) / np.log1p(-equal))) if equal > 1e-9 else NUM_HASHES + 1
