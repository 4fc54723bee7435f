"""Near-duplicates among many rows in little memory: MinHash bands on disk, then exact similarity.

A row costs 32 bytes of sketch, 8 bytes a band and 4 bytes of rank a band on disk; in memory about 50 bytes, whatever
the number of bands, because they are read one after another.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.dataset.shingles import SLACK, banding, jaccard, mixed, screened

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int32]
Pairs = npt.NDArray[np.int64]
HEADS = 8
NEIGHBOURS = 8
_SLICE = 1 << 17
_CHUNK = 2048


class Pair(NamedTuple):
    """Two rows, first < second, and the exact Jaccard similarity of their shingles."""

    first: int
    second: int
    similarity: float


class Signatures:
    """The band hashes of rows, one file a band in `folder`; rows are numbered in the order of `add`.

    What an earlier object wrote into the folder is there to be read until this one adds.
    """

    def __init__(self, folder: Path, threshold: float, seed: int) -> None:
        self._folder = folder
        self._banding = banding(threshold, seed)
        self._bands = [folder / f"band-{band:03}.u64" for band in range(self._banding.bands)]
        self._sketch = folder / "sketch.u64"
        self._open: list[BinaryIO] = []
        self.done: Callable[[int], None] = lambda count: None  # called with the bands that `candidates` is done with
        self.num_rows = self._bands[0].stat().st_size // 8 if self._bands[0].exists() else 0

    @property
    def num_bands(self) -> int:
        return len(self._bands)

    def add(self, texts: Sequence[str]) -> None:
        """Appends normalised texts; how many at a time changes nothing."""
        if not self._open:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._open = [path.open("wb") for path in (*self._bands, self._sketch)]
            self.num_rows = 0
        hashes, sketches = self._banding.of(texts)
        for file, column in zip(self._open, (*hashes.T, sketches), strict=True):
            file.write(np.ascontiguousarray(column).tobytes())
        self.num_rows += len(texts)

    def close(self) -> None:
        """Ends the writing; the files stay for `candidates` until the folder is deleted."""
        for file in self._open:
            file.close()

    def candidates(self, considered: Flags, groups: Numbers | None = None) -> Iterator[Pairs]:
        """Pairs of rows that share a band, as arrays (m, 2) of row numbers i < j, each pair once.

        Only rows whose `considered` is true and, with `groups`, pairs of one group. In a bucket of more than
        HEADS + NEIGHBOURS + 1 rows each is paired with its first HEADS rows and the NEIGHBOURS before it, so
        that templated data costs at most 16 pairs a row and band; the chain still connects the bucket.
        """
        if self.num_rows == 0:
            return
        for band in range(len(self._bands)):
            for first, second in self._bucket_pairs(band, considered, groups):
                open_ = self._may_be_similar(first, second)
                pairs = self._unseen(band, np.stack([first[open_], second[open_]], axis=1))
                if len(pairs):
                    yield pairs.astype(np.int64)
            self.done(1)

    def _may_be_similar(self, first: Numbers, second: Numbers) -> Flags:
        # Mapped anew each time: what was read of a mapping counts as memory until it is closed.
        sketches = _mapped(self._sketch, np.uint64).reshape(-1, 4)
        return self._banding.may_be_similar(sketches[first], sketches[second])

    def _rank_file(self, band: int) -> Path:
        return self._folder / f"rank-{band:03}.i32"

    def _bucket_pairs(self, band: int, considered: Flags, groups: Numbers | None) -> Iterator[tuple[Numbers, Numbers]]:
        rows, rank = self._buckets(band, considered, groups)
        by_row = np.zeros(self.num_rows, dtype=np.int32)
        by_row[rows] = rank
        by_row.tofile(self._rank_file(band))
        del by_row
        for start in range(0, len(rows), _SLICE):
            at = np.arange(start, min(start + _SLICE, len(rows)))
            for back in range(1, NEIGHBOURS + 1):
                near = at[rank[at] >= back]
                yield rows[near - back], rows[near]
            for head in range(HEADS):
                far = at[rank[at] > head + NEIGHBOURS]
                yield rows[far - rank[far] + head], rows[far]

    def _buckets(self, band: int, considered: Flags, groups: Numbers | None) -> tuple[Numbers, Numbers]:
        """The rows that share their hash with another, bucket by bucket, and each one's rank in its bucket."""
        rows = np.flatnonzero(considered).astype(np.int32)
        hashes = np.fromfile(self._bands[band], dtype=np.uint64)[rows]
        if groups is not None:
            hashes ^= mixed(groups[rows].astype(np.uint64) + np.uint64(1))
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        hashes = hashes[order]
        same = hashes[1:] == hashes[:-1]
        del hashes
        shared = np.append(same, False) | np.append(False, same)
        begins = ~np.append(False, same)[shared]
        at = np.arange(len(begins), dtype=np.int32)
        rank = at - np.maximum.accumulate(np.where(begins, at, np.int32(0)))
        return rows[order[shared]], rank

    def _unseen(self, band: int, pairs: Numbers) -> Numbers:
        """The pairs that no earlier band gave."""
        for earlier in range(band):
            if not len(pairs):
                break
            hashes = _mapped(self._bands[earlier], np.uint64)
            ranks = _mapped(self._rank_file(earlier), np.int32)
            first, second = pairs.T
            equal = hashes[first] == hashes[second]
            given = (ranks[second] - ranks[first] <= NEIGHBOURS) | (ranks[first] < HEADS)
            pairs = pairs[~(equal & given)]
        return pairs


def _mapped(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """A file's numbers, read as they are asked for; as a plain array, which is faster to index than a memmap."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


class Clusters:
    """Which rows hang together: a union-find of 4 bytes a row whose roots are the first rows."""

    def __init__(self, num_rows: int) -> None:
        self._parent = np.arange(num_rows, dtype=np.int32)

    def roots(self, rows: npt.NDArray[np.integer]) -> Numbers:
        """The first row of each row's cluster."""
        found = self._parent[rows]
        while not np.array_equal(above := self._parent[found], found):
            found = above
        self._parent[rows] = found
        return found

    def join(self, first: int, second: int) -> bool:
        """Whether the two rows weren't in one cluster before."""
        low, high = sorted((self._root(first), self._root(second)))
        self._parent[high] = low
        return low != high

    def _root(self, row: int) -> int:
        parent = self._parent
        while (above := int(parent[row])) != row:
            parent[row] = parent[above]
            row = above
        return row

    def numbers(self) -> Numbers:
        """For each row the first row of its cluster, (num_rows,)."""
        return self.roots(np.arange(len(self._parent)))


def similar_pairs(
    signatures: Signatures,
    texts: Callable[[Pairs], list[str]],
    threshold: float,
    considered: Flags,
    groups: Numbers | None = None,
    clusters: Clusters | None = None,
) -> Iterator[Pair]:
    """Candidates whose exact similarity is at least `threshold`; `texts` gives the normalised texts of rows.

    With `clusters`, pairs are joined there and a pair whose rows already hang together is left out: of n rows
    that are all alike n - 1 pairs come, not all.
    """
    for candidates in signatures.candidates(considered, groups):
        for at in range(0, len(candidates), _CHUNK):
            chunk = candidates[at : at + _CHUNK]
            if clusters is not None:
                chunk = chunk[clusters.roots(chunk[:, 0]) != clusters.roots(chunk[:, 1])]
            for pair in _confirmed(chunk, texts, threshold):
                if clusters is None or clusters.join(pair.first, pair.second):
                    yield pair


def _confirmed(pairs: Pairs, texts: Callable[[Pairs], list[str]], threshold: float) -> Iterator[Pair]:
    rows, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(-1, 2)
    found = texts(rows)
    for first, second in places[screened(found, places) >= threshold - SLACK].tolist():
        similarity = jaccard(found[first], found[second])
        if similarity >= threshold:
            yield Pair(int(rows[first]), int(rows[second]), similarity)
