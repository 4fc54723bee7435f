"""Accuracy by what the rows' columns say: where a subject is better or worse than elsewhere."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import fisher_exact

from pipelines.config.nearest import did_you_mean
from pipelines.errors import UserError
from pipelines.evaluation.record import Record
from pipelines.interval import Interval, rate

ROW_COLUMNS = ("label", "source", "group", "kind")
# Numbers with more different values than this are cut into quarters.
MOST_NUMBERS = 30
QUARTERS = 4
ALPHA = 0.05

DEFINITIONS: dict[str, str] = {
    "worst_slice_accuracy": "The lowest accuracy among slices with enough rows. Chosen because it is the lowest, it is "
    "lower than the same slice will be on other rows.",
    "worst_slice_rows": "Rows of that slice.",
    "slice_p": "Fisher's exact two-sided test (1935) of the slice's accuracy against that of all other rows, adjusted "
    "by Holm (1979) over all slices of all columns: the chance that any of them would differ as much if none did. "
    "It takes rows for independent.",
}


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows whose `column` says `value`.

    `difference` is their accuracy less that of all other rows, `p` Fisher's exact test of it and `adjusted_p` that
    after Holm; all None where there is no other row.
    """

    column: str
    value: str
    num_rows: int
    accuracy: Interval
    difference: float | None
    p: float | None
    adjusted_p: float | None


@dataclass(frozen=True, slots=True)
class SliceTable:
    """Every slice, by column and value; `worst` None where none has rows enough; `note` says how to read it."""

    slices: list[Slice]
    worst: Slice | None
    note: str

    def metrics(self) -> dict[str, float]:
        """The worst slice's metrics; none where there is no such slice."""
        if self.worst is None:
            return {}
        return self.worst.accuracy.metrics("worst_slice_accuracy") | {"worst_slice_rows": float(self.worst.num_rows)}


def slices(records: Sequence[Record], columns: Sequence[str], min_rows: int, resamples: int, seed: int) -> SliceTable:
    """The records that have a verdict, told apart by each of the columns in turn.

    A column is label, source (its file), group, kind, or a name in `kept`. Rows without a value are left out of their
    column. Kept numbers of more than 30 different values are cut into quarters, which their names say. Intervals as
    `pipelines.interval.rate` has them. The worst slice is the least accurate of those with `min_rows` rows, on ties
    the one with more rows, then by name. Raises UserError where no record has a column.
    """
    judged = [record for record in records if record.correct is not None]
    kept = [(json.loads(record.kept) if record.kept else None) or {} for record in judged]
    found: list[Slice] = []
    for column in dict.fromkeys(columns):
        values = _values(column, judged, kept)
        for value in sorted({value for value in values if value is not None}, key=_natural):
            found.append(_slice(column, value, judged, [held == value for held in values], (resamples, seed)))
    adjusted = iter(holm([found_slice.p for found_slice in found if found_slice.p is not None]))
    table = [one if one.p is None else replace(one, adjusted_p=next(adjusted)) for one in found]
    enough = [one for one in table if one.num_rows >= min_rows]
    worst = min(enough, key=lambda one: (one.accuracy.value, -one.num_rows, one.column, one.value), default=None)
    return SliceTable(table, worst, _note(table, len(dict.fromkeys(columns)), min_rows))


def check_columns(columns: Sequence[str], kept: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError for a column that no row has; `kept` is what stayed with each of the rows."""
    there = [*ROW_COLUMNS, *sorted({name for held in kept for name in held} - set(ROW_COLUMNS))]
    for column in columns:
        if kept and column not in there:
            raise UserError(
                f"evaluate.slices.columns: no row has a column {column!r}; the rows have {', '.join(there)}"
                f"{did_you_mean(column, there)}; a source's keep keeps more"
            )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being so many, in their order.

    Method: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979): the chance of any false alarm among all tests stays below the level, whatever their dependence.
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = least
    return adjusted


def _slice(
    column: str, value: str, records: Sequence[Record], inside: Sequence[bool], bootstrap: tuple[int, int]
) -> Slice:
    verdicts: dict[bool, list[bool]] = {True: [], False: []}
    for record, belongs in zip(records, inside, strict=True):
        verdicts[belongs].append(bool(record.correct))
    own, rest = verdicts[True], verdicts[False]
    groups = [record.group for record, belongs in zip(records, inside, strict=True) if belongs]
    accuracy = rate(own, groups, *bootstrap)
    if not rest:
        return Slice(column, value, len(own), accuracy, None, None, None)
    table = [[sum(own), len(own) - sum(own)], [sum(rest), len(rest) - sum(rest)]]
    difference = accuracy.value - sum(rest) / len(rest)
    return Slice(column, value, len(own), accuracy, difference, float(fisher_exact(table).pvalue), None)


def _note(table: Sequence[Slice], num_columns: int, min_rows: int) -> str:
    if not table:
        return "No slice: no row has a value in these columns."
    tested = sum(one.p is not None for one in table)
    looked = f"{_counted(len(table), 'slice')} of {_counted(num_columns, 'column')} looked at"
    if not tested:
        return f"{looked}; none has other rows to differ from."
    return (
        f"{looked}. If none really differed, {ALPHA * tested:.1f} of {tested} would still differ from the other rows "
        f"at 5 % by chance alone; p is Holm-adjusted for that. Slices under {_counted(min_rows, 'row')} are listed, "
        "but never called the worst."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- a column's values --------------------------------------------------------------------------


def _values(column: str, records: Sequence[Record], kept: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """What each record says in the column, many numbers kept with it as their quarter; None where it says nothing."""
    if column in ROW_COLUMNS:
        return [_of_row(column, record) for record in records]
    check_columns([column], kept)
    return _quartered([_text(held.get(column)) for held in kept])


def _of_row(column: str, record: Record) -> str | None:
    value = str(getattr(record, column))
    return (value.rpartition(":")[0] if column == "source" and ":" in value else value) or None


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _quartered(values: Sequence[str | None]) -> list[str | None]:
    present = {value for value in values if value is not None}
    numbers = {value: number for value in present if (number := _number(value)) is not None}
    if len(numbers) < len(present) or len(set(numbers.values())) <= MOST_NUMBERS:
        return list(values)
    held = [numbers[value] for value in values if value is not None]
    # Ties can make two cuts one: then there are fewer parts than four.
    cuts = sorted(set(np.quantile(held, [part / QUARTERS for part in range(1, QUARTERS)]).tolist()))
    names = _part_names([min(held), *cuts, max(held)])
    return [None if value is None else names[int(np.searchsorted(cuts, numbers[value]))] for value in values]


def _part_names(edges: Sequence[float]) -> list[str]:
    parts = len(edges) - 1
    names = [f"quartile {part + 1}: over {edges[part]:g} to {edges[part + 1]:g}" for part in range(parts)]
    return [names[0].replace("over ", ""), *names[1:]]


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _natural(value: str) -> tuple[bool, float, str]:
    """Numbers by size and before all else."""
    number = _number(value)
    return number is None, number or 0.0, value
