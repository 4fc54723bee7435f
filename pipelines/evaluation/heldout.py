"""The held-out rows that a score may rest on: vouched for by a card, and apart from what was trained on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.dataset.questions import FILE, fingerprint, fingerprints, read_questions
from pipelines.dataset.row import Row, question
from pipelines.dataset.rows import digest, read_rows
from pipelines.errors import UserError
from pipelines.evaluation.card import Card, Drift, distribution, read_card
from pipelines.product import Product

SHOWN = 3


@dataclass(frozen=True)
class Heldout:
    """The rows, the digest of exactly those, their card (None where none was asked for) and contamination report.

    `validation` are rows of the same kind that no score is taken on, `trained` the fingerprints of the questions of
    these and of the training rows, `answers` what those are answered with.
    """

    rows: list[Row]
    digest: str
    validation: list[Row]
    trained: frozenset[str]
    answers: frozenset[str]
    card: Card | None
    drift: Drift | None
    contamination: Mapping[str, Any] | None


def card_of(config: Config) -> Card | None:
    """The card of the task's held-out rows. Raises UserError where there is none and one is asked for."""
    if config.task.card is not None:
        return read_card(resolve(config.task.card))
    if config.evaluate.without_card:
        return None
    raise UserError(
        f"task.card: the held-out rows of {config.task.name} have no card; expected a file that says what makes a row "
        "a test, who labelled it, and why it is independent of training (docs/evaluate.md shows one), "
        "or evaluate.without_card=true"
    )


def read_heldout(config: Config, product: Product) -> Heldout:
    """The held-out rows of a product of prepare. Raises UserError where there are none, or no card."""
    card = card_of(config)
    path = product.file("heldout.jsonl")
    rows = read_rows(path)[: config.evaluate.max_rows]
    if not rows:
        raise UserError(f"{path}: no rows; evaluate needs some to score")
    validation = _optional(product, "validation")
    others = [*_optional(product, "train"), *validation]
    summary = product.file("summary.json")
    return Heldout(
        rows=rows,
        digest=digest(rows),
        validation=validation,
        trained=frozenset(fingerprints(others)),
        answers=frozenset(row.answer for row in others),
        card=card,
        drift=distribution(card, [row.label for row in rows]) if card else None,
        contamination=json.loads(summary.read_text(encoding="utf-8"))["contamination"] if summary.is_file() else None,
    )


def _optional(product: Product, split: str) -> list[Row]:
    path = product.file(f"{split}.jsonl")
    return read_rows(path) if path.is_file() else []


def check_apart(heldout: Heldout, product: Product, adapters: Mapping[str, Path]) -> None:
    """Raises UserError where a held-out row was trained on: in the same product, or by a subject's adapter.

    `adapters` are the subjects' folders; one that an earlier release wrote doesn't say what it was trained on.
    """
    trained = {f"the training rows of {product.folder.name}": set(heldout.trained)}
    for name, folder in adapters.items():
        if (folder / FILE).is_file():
            trained[f"what the adapter of {name} was trained on"] = read_questions(folder / FILE)
    for whose, questions in trained.items():
        shared = [row for row in heldout.rows if fingerprint(row) in questions]
        if shared:
            shown = "".join(f"\n  {row.source}: {question(row.prompt)[:100]!r}" for row in shared[:SHOWN])
            raise UserError(
                f"heldout.jsonl shares {len(shared):,} of {len(heldout.rows):,} rows with {whose}; a score on them "
                f"is no evidence. prepare.contamination.policy=remove takes them out of training:{shown}"
            )
