"""Word n-grams that a text shares with protected ones: held-out rows, a benchmark's questions.

Tokens are `[a-z0-9]+` of the lower-cased text, as in GPT-3's contamination study (Brown et al. 2020, appendix C).
A protected n-gram costs 12 bytes a size, and 4 bytes a word.
"""

import re
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.dataset.shingles import Hashes, mixed

Numbers = npt.NDArray[np.int32]
_WORDS = re.compile(r"[a-z0-9]+")
_UNKNOWN = -1
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Match(NamedTuple):
    """The first words of a text that a protected one has as well, and which: its number in the order of `add`."""

    row: int
    text: str


class _Words(NamedTuple):
    """Word numbers of texts one after another, and the text of each word."""

    numbers: Numbers
    rows: Numbers

    def starts(self, size: int) -> Numbers:
        """Where a run of `size` known words of one text begins."""
        at = np.arange(max(0, len(self.numbers) - size + 1), dtype=np.int32)
        unknown = np.concatenate([[0], np.cumsum(self.numbers == _UNKNOWN)])
        return at[(self.rows[at] == self.rows[at + size - 1]) & (unknown[at + size] == unknown[at])]

    def hashes(self, starts: Numbers, size: int) -> Hashes:
        """One hash for each run of `size` words."""
        words = mixed(self.numbers.astype(np.uint64))
        found = np.zeros(len(starts), dtype=np.uint64)
        for step in range(size):
            found = found * _FACTOR + words[starts + step]
        return found

    def runs(self, starts: Numbers, size: int) -> Numbers:
        """The word numbers of runs, (starts, size)."""
        return self.numbers[starts[:, None] + np.arange(size, dtype=np.int32)]


class _Ngrams(NamedTuple):
    """The protected n-grams of one size: their hashes in order, and where each begins."""

    size: int
    hashes: Hashes
    starts: Numbers

    @classmethod
    def of(cls, words: _Words, size: int) -> "_Ngrams":
        starts = words.starts(size)
        hashes = words.hashes(starts, size)
        order = np.argsort(hashes, kind="stable")
        return cls(size, hashes[order], starts[order])

    def find(self, asked: _Words, protected: _Words) -> tuple[Numbers, Numbers]:
        """Where protected n-grams begin in the texts asked, and where each first begins in the protected ones."""
        starts = asked.starts(self.size)
        hashes = asked.hashes(starts, self.size)
        places = np.searchsorted(self.hashes, hashes)
        found_in, found_at = [starts[:0]], [starts[:0]]
        while len(starts):
            inside = places < len(self.hashes)
            inside[inside] = self.hashes[places[inside]] == hashes[inside]
            starts, hashes, places = starts[inside], hashes[inside], places[inside]
            at = self.starts[places]
            equal = (asked.runs(starts, self.size) == protected.runs(at, self.size)).all(axis=1)
            found_in.append(starts[equal])
            found_at.append(at[equal])
            # A hash of other words: the n-gram may stand behind it.
            starts, hashes, places = starts[~equal], hashes[~equal], places[~equal] + 1
        return np.concatenate(found_in), np.concatenate(found_at)


class NgramIndex:
    """Protected texts by their word n-grams of several sizes; every hit is confirmed word by word."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._vocabulary: dict[str, int] = {}
        self._numbers = array("i")
        self._lengths = array("i")
        self._words = _words(self._numbers, self._lengths)
        self._ngrams: list[_Ngrams] | None = None

    def add(self, texts: Sequence[str]) -> None:
        """Protects texts, numbered in this order from 0 on."""
        number = self._vocabulary
        for text in texts:
            words = _WORDS.findall(text.lower())
            self._numbers.extend([number.setdefault(word, len(number)) for word in words])
            self._lengths.append(len(words))
        self._ngrams = None

    def matches(self, texts: Sequence[str]) -> list[dict[int, Match]]:
        """For each text, by n-gram size, the first run of words that a protected text has as well."""
        number = self._vocabulary
        words = [_WORDS.findall(text.lower()) for text in texts]
        numbers = array("i", [number.get(word, _UNKNOWN) for of_text in words for word in of_text])
        asked = _words(numbers, array("i", map(len, words)))
        begins = np.concatenate([[0], np.cumsum([len(of_text) for of_text in words])])
        found: list[dict[int, Match]] = [{} for _ in texts]
        for ngrams in self._indexed():
            starts, at = ngrams.find(asked, self._words)
            order = np.argsort(starts, kind="stable")
            rows, first = np.unique(asked.rows[starts[order]], return_index=True)
            for row, which in zip(rows.tolist(), order[first].tolist(), strict=True):
                start = int(starts[which] - begins[row])
                text = " ".join(words[row][start : start + ngrams.size])
                found[row][ngrams.size] = Match(int(self._words.rows[at[which]]), text)
        return found

    def _indexed(self) -> list[_Ngrams]:
        if self._ngrams is None:
            self._words = _words(self._numbers, self._lengths)
            self._ngrams = [_Ngrams.of(self._words, size) for size in self._sizes]
        return self._ngrams


def _words(numbers: "array[int]", lengths: "array[int]") -> _Words:
    counts = np.array(lengths, dtype=np.int32)
    rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return _Words(np.array(numbers, dtype=np.int32), rows)
