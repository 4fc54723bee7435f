"""Copies of protected texts, lightly edited: a typo, a word more, less or another, a `please`.

In a query of six words one changed word leaves a similarity of 0.5, and ten times as many of Banking77's training
queries are as similar as that to a test query as are one changed word away from it. So a lower similarity is
enough where the texts differ in one place only. Such pairs are found by the hashes of a text without its every word
and every two neighbouring words, as SymSpell (Garbe 2012) does with letters.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.dataset.shingles import SLACK, Hashes, banding, distinct, jaccard, mixed, screened

ONE_WORD = 0.5
SHORT, SHORT_WORD = 7, 0.55  # fewer words than SHORT: one in place of another says more
TWO_WORDS = 0.6
BUCKET = 64
_GAPS = (0, 1, 2)
_FACTOR = 0x9E3779B97F4A7C15
_COURTESIES = frozenset(["hi", "hello", "hey", "dear", "please", "kindly", "pls", "thanks"])
Numbers = npt.NDArray[np.int64]


class Near(NamedTuple):
    """The protected text that is most alike, by its number in the order of `add`, and how alike it is."""

    row: int
    similarity: float


def _told(text: str) -> list[str]:
    """The words of a text but for courtesies."""
    words = text.split()
    return [word for word in words if word not in _COURTESIES] or words


def enough(first: str, second: str) -> float:
    """The similarity that makes two normalised texts near-copies for the one place in which they differ.

    ONE_WORD for a word more, less or in place of another (there SHORT_WORD in a short text); TWO_WORDS for two more,
    less or in place of one; infinite where more differs. Courtesies don't count.
    """
    left, right = _told(first), _told(second)
    short = min(len(left), len(right))
    start = next((at for at in range(short) if left[at] != right[at]), short)
    most = short - start
    end = next((at for at in range(most) if left[-1 - at] != right[-1 - at]), most)
    less, more = sorted((len(left) - start - end, len(right) - start - end))
    if more <= 1:
        return SHORT_WORD if less == 1 and short < SHORT else ONE_WORD
    return TWO_WORDS if less <= 1 and more == 2 else inf


def _gapped(words: list[list[str]], vocabulary: dict[str, int]) -> tuple[Hashes, Numbers]:
    """Hashes of texts without no, one and two neighbouring words, and the number of each hash's text.

    A polynomial over the words, so that sums over the words before and behind a gap give its hash. A word outside
    the vocabulary hashes like none of it.
    """
    lengths = np.array([len(of_text) for of_text in words], dtype=np.int64)
    numbers = [vocabulary.get(word, -1) for of_text in words for word in of_text]
    begins = np.cumsum(lengths) - lengths
    powers, back = (_powers(base, len(numbers) + len(_GAPS)) for base in (_FACTOR, pow(_FACTOR, -1, 2**64)))
    sums = np.zeros(len(numbers) + 1, dtype=np.uint64)
    np.cumsum(mixed(np.array(numbers, dtype=np.int64).astype(np.uint64)) * powers[: len(numbers)], out=sums[1:])
    hashes, texts = [], []
    for gap in _GAPS:
        places = np.where(gap, np.maximum(lengths - gap + 1, 0), 1)
        text = np.repeat(np.arange(len(words)), places)
        at = begins[text] + np.arange(len(text)) - np.repeat(np.cumsum(places) - places, places)
        begin, end = begins[text], (begins + lengths)[text]
        hashes.append((sums[at] - sums[begin] + (sums[end] - sums[at + gap]) * back[gap]) * back[begin])
        texts.append(text)
    return np.concatenate(hashes), np.concatenate(texts)


def _powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


class _Table:
    """Hashes of protected texts, in order, and the text of each."""

    def __init__(self, hashes: Hashes, rows: npt.NDArray[np.integer]) -> None:
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._rows = rows[order].astype(np.int32)

    def pairs(self, asked: Hashes) -> tuple[Numbers, Numbers]:
        """Places in `asked`, and for each protected texts of the same hash, at most BUCKET."""
        begin = np.searchsorted(self._hashes, asked)
        hit = np.flatnonzero(self._hashes[np.minimum(begin, len(self._hashes) - 1)] == asked)
        begin = begin[hit]
        count = np.minimum(np.searchsorted(self._hashes, asked[hit], side="right") - begin, BUCKET)
        step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(hit, count), self._rows[np.repeat(begin, count) + step].astype(np.int64)


class _Tables(NamedTuple):
    bands: list[_Table]
    sketches: Hashes
    gapped: _Table
    vocabulary: dict[str, int]


class NearIndex:
    """Protected normalised texts in memory: of twelve words, about 0.6 KB each beside the text.

    A near-copy is `threshold` alike or more, exactly; or changed in one place and alike `enough` for that.
    """

    def __init__(self, threshold: float, seed: int) -> None:
        self._threshold = threshold
        self._banding = banding(threshold, seed)
        self._texts: list[str] = []
        self._first: dict[str, int] = {}
        self._tables: _Tables | None = None

    def add(self, texts: Sequence[str]) -> None:
        """Protects normalised texts, numbered in this order from 0 on."""
        for text in texts:
            self._first.setdefault(text, len(self._texts))
            self._texts.append(text)
        self._tables = None

    def matches(self, texts: Sequence[str]) -> list[Near | None]:
        """For each normalised text the most alike protected text of which it is a near-copy, or None."""
        found: list[Near | None] = [None] * len(texts)
        others = [at for at, text in enumerate(texts) if text not in self._first]
        for at in set(range(len(texts))).difference(others):
            found[at] = Near(self._first[texts[at]], 1.0)
        if self._texts and others:
            for place, rows in self._candidates([texts[at] for at in others]).items():
                found[others[place]] = self._best(texts[others[place]], rows)
        return found

    def _best(self, text: str, rows: list[int]) -> Near | None:
        """Of equally alike texts the first."""
        for distance, row in sorted((-jaccard(text, self._texts[row]), row) for row in rows):
            if -distance >= self._threshold or -distance >= enough(text, self._texts[row]):
                return Near(row, -distance)
        return None

    def _candidates(self, texts: list[str]) -> dict[int, list[int]]:
        """The place of each text that may be a near-copy, and the protected texts of which."""
        tables = self._indexed()
        hashes, sketches = self._banding.of(texts)
        banded = [band.pairs(column) for band, column in zip(tables.bands, hashes.T, strict=True)]
        places, rows = np.divmod(distinct(np.concatenate([self._keys(*pairs) for pairs in banded])), len(self._texts))
        open_ = self._banding.may_be_similar(sketches[places], tables.sketches[rows])
        gapped, of_text = _gapped([_told(text) for text in texts], tables.vocabulary)
        at, near = tables.gapped.pairs(gapped)
        alike = self._alike(texts, self._keys(places[open_], rows[open_]), self._threshold)
        changed = self._alike(texts, distinct(self._keys(of_text[at], near)), min(ONE_WORD, self._threshold))
        found: dict[int, list[int]] = defaultdict(list)
        for key in distinct(np.concatenate([alike, changed])).tolist():
            place, row = divmod(key, len(self._texts))
            found[place].append(row)
        return found

    def _alike(self, texts: list[str], keys: Numbers, least: float) -> Numbers:
        """Of pairs of texts and protected ones those that are alike enough."""
        places, rows = np.divmod(keys, len(self._texts))
        used, local = np.unique(rows, return_inverse=True)
        both = texts + [self._texts[row] for row in used.tolist()]
        return keys[screened(both, np.stack([places, local + len(texts)], axis=1)) >= least - SLACK]

    def _keys(self, places: Numbers, rows: Numbers) -> Numbers:
        """One number for each pair, so that a pair can be counted once."""
        return places * len(self._texts) + rows

    def _indexed(self) -> _Tables:
        if self._tables is None:
            words = [_told(text) for text in self._texts]
            vocabulary: dict[str, int] = {}
            for of_text in words:
                for word in of_text:
                    vocabulary.setdefault(word, len(vocabulary))
            hashes, sketches = self._banding.of(self._texts)
            bands = [_Table(column, np.arange(len(column))) for column in hashes.T]
            self._tables = _Tables(bands, sketches, _Table(*_gapped(words, vocabulary)), vocabulary)
        return self._tables
