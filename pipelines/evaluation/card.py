"""The inclusion card of a held-out set: what its rows are a test of, and what lets a reader trust that.

A score says as much as the set it is taken on. The card holds what no program can find out; the contamination report
is added by the program. After the datasheets of Gebru et al. 2021, "Datasheets for Datasets", cut down to a test set.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from pipelines.errors import UserError
from pipelines.evaluation.given import mistakes

SHOWN = 10
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

DEFINITIONS: dict[str, str] = {
    "total_variation": "Half the sum of the absolute differences between the labels' shares among the held-out rows "
    "and in production: 0 where they are the same, 1 where no label is in both (Levin & Peres 2017, section 4.1)."
}


class Card(BaseModel):
    """What a held-out set vouches for; `production_shares` is each label's share in production, if that is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    capability: Text
    labelled_by: Text
    independence: Text
    production: Text
    limits: Text
    version: Text
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    production_shares: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None

    @field_validator("production_shares")
    @classmethod
    def _sums_to_one(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        if shares is not None and abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"expected shares with a sum of 1, got {sum(shares.values()):g}")
        return shares


@dataclass(frozen=True, slots=True)
class Difference:
    """A label's share among the held-out rows and in production."""

    label: str
    heldout: float
    production: float


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the held-out labels are from production's: see `DEFINITIONS`; the largest differences first."""

    total_variation: float
    differences: tuple[Difference, ...]


def read_card(path: Path) -> Card:
    """The card in a YAML file. Raises UserError with a line for each mistake: file, field, expected and found."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"task.card: {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"task.card: {path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"task.card: {path}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return Card.model_validate(_dated(given))
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {mistake}" for mistake in mistakes(error, Card))) from None


def _dated(given: Any) -> Any:
    """YAML reads a day as a date."""
    if isinstance(given, dict) and type(given.get("date")) is date:
        return {**given, "date": given["date"].isoformat()}
    return given


def distribution(card: Card, labels: Sequence[str]) -> Drift | None:
    """How far the labels of the held-out rows are from production's; None where the card or the rows don't say."""
    if card.production_shares is None or not any(labels):
        return None
    counts = Counter(labels)
    found = [
        Difference(label, counts[label] / len(labels), card.production_shares.get(label, 0.0))
        for label in sorted(counts.keys() | card.production_shares.keys())
    ]
    found.sort(key=lambda one: -abs(one.heldout - one.production))
    return Drift(sum(abs(one.heldout - one.production) for one in found) / 2, tuple(found[:SHOWN]))
