"""Prompts that occur among the held-out rows as well."""

from collections.abc import Iterable

from pipelines.dataset.row import Row


def normalised(text: str) -> str:
    """Case folded and white space collapsed: what counts as the same prompt."""
    return " ".join(text.casefold().split())


def count_overlap(rows: Iterable[Row], heldout: Iterable[Row]) -> int:
    """How many rows ask what a held-out row asks."""
    asked = {normalised(row.prompt[-1]["content"]) for row in heldout}
    return sum(normalised(row.prompt[-1]["content"]) in asked for row in rows)
