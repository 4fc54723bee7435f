"""Which rows a split takes: seeded, by whole clusters, and independent of the order of rows and files.

Rows come as arrays: `cluster` numbers what must stay together, `name` is a 64-bit key of each row's own that
decides its place in the queue, `label` is a code.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def position(seed: int, purpose: str, key: str) -> float:
    """A number in [0, 1) that looks random and is the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def positions(seed: int, purpose: str, keys: Array) -> Array:
    """`position` of each key, written as 16 hexadecimal digits."""
    return np.fromiter((position(seed, purpose, f"{key:016x}") for key in keys.tolist()), float, len(keys))


def sample(ids: Array, limit: int, seed: int) -> Array:
    """Places of `limit` rows, or of all where there are fewer; adding rows replaces only as many as needed."""
    order = np.lexsort((ids, positions(seed, "sample", ids)))
    return np.sort(order[:limit])


@dataclass(frozen=True)
class Clusters:
    """Rows that stay together: the cluster of each row, and of each cluster its key, size and only label.

    `label` is -1 where a cluster holds rows of several labels.
    """

    of_row: Array
    key: Array
    size: Array
    label: Array

    @classmethod
    def of(cls, cluster: Array, name: Array, label: Array) -> "Clusters":
        """Numbers the clusters from 0; a cluster's key is the smallest name among its rows."""
        found, of_row, size = np.unique(cluster, return_inverse=True, return_counts=True)
        key = np.full(len(found), np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(key, of_row, name)
        low, high = np.full(len(found), np.iinfo(np.int64).max), np.full(len(found), -1)
        np.minimum.at(low, of_row, label.astype(np.int64))
        np.maximum.at(high, of_row, label.astype(np.int64))
        return cls(of_row, key, size, np.where(low == high, low, -1))


def by_hash(clusters: Clusters, share: float, seed: int, purpose: str) -> Array:
    """Rows whose cluster's position is below the share: whatever is added, no row moves."""
    return (positions(seed, purpose, clusters.key) < share)[clusters.of_row]


def stratified(clusters: Clusters, labels: list[str], share: float, seed: int, purpose: str) -> Array:
    """About `share` of each label's clusters.

    A label with two clusters or more keeps at least one out; a cluster with more than one label isn't taken,
    because a score on it would mean nothing. New rows move no rows of other labels.
    """
    place = positions(seed, purpose, clusters.key)
    chosen = np.zeros(len(clusters.key), bool)
    order = np.lexsort((clusters.key, place, clusters.label))
    starts = np.searchsorted(clusters.label[order], np.arange(len(labels) + 1))
    for code, name in enumerate(labels):
        queue = order[starts[code] : starts[code + 1]]
        # Rounding to the nearest would leave small labels (8 rows at 5 %) without a row in every one
        # of them; a fixed random threshold per label is right on average over the labels.
        quota = int(share * len(queue) + position(seed, "quota", name))
        chosen[queue[: min(quota, len(queue) - 1)]] = True
    return chosen[clusters.of_row]


def by_time(clusters: Clusters, time: Array, share: float, after: float | None) -> Array:
    """Clusters whose newest row is from `after` on; without it the newest `share` of the rows."""
    newest = np.full(len(clusters.key), -np.inf)
    np.maximum.at(newest, clusters.of_row, time)
    if after is None:
        order = np.lexsort((clusters.key, -newest))
        taken = np.cumsum(clusters.size[order]) <= max(1, round(share * len(time)))
        chosen = np.zeros(len(newest), bool)
        chosen[order[taken]] = True
        return chosen[clusters.of_row]
    return (newest >= after)[clusters.of_row]


def matched(clusters: Clusters, codes: Mapping[int, float], size: int, seed: int, purpose: str) -> Array:
    """`size` rows whose labels have these shares, as near as whole clusters allow."""
    place = positions(seed, purpose, clusters.key)
    chosen = np.zeros(len(clusters.key), bool)
    for code, share in codes.items():
        queue = np.flatnonzero(clusters.label == code)
        queue = queue[np.lexsort((clusters.key[queue], place[queue]))]
        chosen[queue[np.cumsum(clusters.size[queue]) <= round(share * size)]] = True
    return chosen[clusters.of_row]
