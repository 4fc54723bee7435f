"""Rows that repeat others: exact copies, near-copies, and one question with different answers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config.schema import Duplicates
from pipelines.dataset.shingles import jaccard
from pipelines.dataset.similar import Clusters, Pair, Signatures, similar_pairs
from pipelines.preparation.pool import Flags, Pool, Rows
from pipelines.progress import meter

SHOWN = 5
PAIR = np.dtype([("first", np.int32), ("second", np.int32), ("similarity", np.float64)])


def remove_exact(pool: Pool, policy: str) -> dict[str, Any]:
    """Of rows for training that ask and answer the same, all but the first by id go; those held out are counted."""
    copies, of = _repeats(pool, pool.trains)
    if policy == "remove":
        named = dict(zip(np.unique(of).tolist(), pool.named(np.unique(of)), strict=True))
        reasons = {
            int(row): {"reason": "exact duplicate", "of": named[int(first)]}
            for row, first in zip(copies, of, strict=True)
        }
        pool.remove("exact duplicates", reasons)
    heldout, _ = _repeats(pool, pool.heldout)
    return {"exact": len(copies), "heldout_exact": len(heldout)}


def _repeats(pool: Pool, among: Flags) -> tuple[Rows, Rows]:
    """Rows that equal an earlier one by id, and that one."""
    rows = np.flatnonzero(among)
    whole, ids = pool.spool.column("whole")[rows], pool.spool.column("id")[rows]
    order = np.lexsort((rows, ids, whole))
    rows, whole = rows[order], whole[order]
    begins = np.append(True, whole[1:] != whole[:-1]) if len(rows) else np.zeros(0, bool)
    first = rows[begins][np.cumsum(begins) - 1] if len(rows) else rows
    return rows[~begins], first[~begins]


class NearCopies:
    """Near-duplicates among the rows: what `duplicates.near` removes, and what a split must keep together."""

    def __init__(self, pool: Pool, signatures: Signatures, settings: Duplicates) -> None:
        self.pool, self.signatures, self.settings = pool, signatures, settings

    def remove(self) -> int:
        """Of near-copies with one label and like answers all but the first by id go; returns how many there are."""
        pairs = self._ranked()
        gone: dict[int, dict[str, Any]] = {}
        for kept, copy, similarity in zip(*(column.tolist() for column in pairs), strict=True):
            if kept not in gone and copy not in gone and self._alike(kept, copy):
                gone[copy] = {"reason": "near-duplicate", "of": kept, "similarity": round(similarity, 3)}
        if self.settings.near == "remove":
            for reason, name in zip(gone.values(), self.pool.named([r["of"] for r in gone.values()]), strict=True):
                reason["of"] = name
            self.pool.remove("near-duplicates", gone)
        return len(gone)

    def _ranked(self) -> tuple[Rows, Rows, npt.NDArray[np.float64]]:
        """Pairs of one label: the row that comes first by id, the other, how alike; in the order of the other."""
        ids = self.pool.spool.column("id")
        labels = self.pool.spool.column("label").astype(np.int32)
        found = np.fromiter(self._pairs(self.pool.trains, labels, None), PAIR)
        turned = ids[found["second"]] < ids[found["first"]]
        kept = np.where(turned, found["second"], found["first"])
        copy = np.where(turned, found["first"], found["second"])
        order = np.lexsort((ids[kept], ids[copy]))
        return kept[order], copy[order], found["similarity"][order]

    def clusters(self) -> npt.NDArray[np.int32]:
        """For each row the first row of its cluster: those that are alike, whatever the label."""
        clusters = Clusters(len(self.pool.alive))
        for _ in self._pairs(self.pool.trains, None, clusters):
            pass
        return clusters.numbers()

    def _pairs(self, among: Flags, groups: npt.NDArray[np.int32] | None, clusters: Clusters | None) -> Iterator[Pair]:
        with meter("near-duplicates", self.signatures.num_bands, "bands") as shown:
            self.signatures.done = shown.advance
            yield from similar_pairs(self.signatures, self.pool.asked, self.settings.threshold, among, groups, clusters)

    def _alike(self, first: int, second: int) -> bool:
        """Whether the answers are alike too, and what is asked about passages, which may be most of a prompt."""
        return self._near(*self.pool.answered([first, second])) and self._near(*self.pool.asked_of([first, second]))

    def _near(self, first: str, second: str) -> bool:
        return first == second or jaccard(first, second) >= self.settings.threshold


def with_groups(pool: Pool, cluster: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The clusters, those that share a group joined; each is named by its first row."""
    _, first, group = np.unique(pool.spool.column("group"), return_index=True, return_inverse=True)
    group = group.astype(np.int32)
    while True:
        # The smallest name goes round, within groups and within clusters, until nothing changes.
        smallest = first.astype(np.int32)
        np.minimum.at(smallest, group, cluster)
        joined = smallest[group]
        root = np.arange(len(cluster), dtype=np.int32)
        np.minimum.at(root, cluster, joined)
        joined = root[joined]
        if np.array_equal(joined, cluster):
            return joined
        cluster = joined


def conflicts(pool: Pool) -> dict[str, Any]:
    """Questions for training that have different answers: how many, and some of them."""
    rows = np.flatnonzero(pool.trains)
    asks, whole = pool.spool.column("asks")[rows], pool.spool.column("whole")[rows]
    order = np.lexsort((rows, whole, asks))
    rows, asks, whole = rows[order], asks[order], whole[order]
    begins = np.flatnonzero(np.append(True, asks[1:] != asks[:-1])) if len(rows) else rows
    ends = np.append(begins[1:], len(rows)) if len(rows) else rows
    differ = [(b, e) for b, e in zip(begins, ends, strict=True) if whole[b] != whole[e - 1]]
    return {
        "conflicts": len(differ),
        "conflict_examples": [_example(pool, rows[b:e]) for b, e in differ[:SHOWN]],
    }


def _example(pool: Pool, rows: Rows) -> dict[str, Any]:
    records = list(pool.spool.records(rows))
    answers = pool.answered(rows)
    prompts = [record["prompt"][-1].get("content") or "" for record in records]
    given = [r["answer"] or a for r, a in zip(records, answers, strict=True)]
    return {"prompt": prompts[0], "answers": given, "sources": [record["source"] for record in records]}
