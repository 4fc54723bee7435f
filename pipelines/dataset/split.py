"""The validation split: stratified, seeded, and independent of the order of rows and files."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from math import floor

from pipelines.dataset.row import Row


def position(seed: int, purpose: str, key: str) -> float:
    """A number in [0, 1) that looks random and is the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def sample(rows: Iterable[Row], limit: int, seed: int) -> list[Row]:
    """`limit` rows, or all where there are fewer; adding rows replaces only as many as needed."""
    return sorted(rows, key=lambda row: (position(seed, "sample", row.id), row.id))[:limit]


def split_validation(rows: Iterable[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, validation), about `share` of each label in validation, each sorted by id.

    A group stays together. A label with two groups or more keeps at least one in train; a group
    with more than one label stays in train, because a validation score on it would mean nothing.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    strata: dict[str, list[str]] = defaultdict(list)
    for group, members in groups.items():
        labels = {row.label for row in members}
        if len(labels) == 1:
            strata[labels.pop()].append(group)
    chosen = {group for label, stratum in strata.items() for group in _choose(label, stratum, share, seed)}
    parted: dict[bool, list[Row]] = {False: [], True: []}
    for group, members in groups.items():
        parted[group in chosen] += members
    return _by_id(parted[False]), _by_id(parted[True])


def _by_id(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.id)


def _choose(label: str, groups: list[str], share: float, seed: int) -> list[str]:
    # Rounding to the nearest would leave small labels (8 rows at 5 %) without validation rows in
    # every one of them; a fixed random threshold per label is right on average over the labels.
    quota = floor(share * len(groups) + position(seed, "quota", label))
    ranked = sorted(groups, key=lambda group: (position(seed, "split", group), group))
    return ranked[: min(quota, len(groups) - 1)]
