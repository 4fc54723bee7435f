"""Size, accuracy and speed of every form, for people: in the terminal, and as EXPORT.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.exporting.judging import Standing
from pipelines.interval import Interval

HEADER = ("form", "size", "accuracy", "against the adapter", "same answer", "tokens/s")

HOW = (
    "Accuracy is on in-scope held-out rows with its 95 % interval; the difference from the adapter is on the same "
    "rows, by a paired bootstrap. Sizes are of whole folders; the adapter's is without its base. Tokens a second are "
    "those of answers asked one at a time on this machine: they compare programs as much as forms."
)


def lines(standings: Sequence[Standing]) -> list[str]:
    """Aligned columns."""
    rows = [HEADER, *(_cells(one) for one in standings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def records(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """The table as MLflow shows it."""
    return [dict(zip(HEADER, _cells(one), strict=True)) for one in standings]


def page(standings: Sequence[Standing], about: Mapping[str, str]) -> str:
    """EXPORT.md: what was exported, the table, and how it was measured."""
    told = [f"- {name}: {value}" for name, value in about.items()]
    rows = ["| " + " | ".join(row) + " |" for row in (HEADER, ["---"] * len(HEADER), *(_cells(s) for s in standings))]
    notes = [f"- {one.form}: {text}" for one in standings for text in (_identity(one), one.note) if text]
    return "\n".join(
        [
            f"# {about['version']} in other forms",
            "",
            *told,
            "",
            *rows,
            "",
            HOW,
            *(["", *notes] if notes else []),
            "",
        ]
    )


def _cells(one: Standing) -> tuple[str, ...]:
    return (
        one.form,
        f"{one.size / 1e6:,.1f} MB",
        _share(one.accuracy, "{:.1%}"),
        _share(one.difference, "{:+.1%}"),
        f"{one.same:.1%}",
        f"{one.tokens_per_s:,.0f}",
    )


def _share(found: Interval | None, form: str) -> str:
    if found is None:
        return "-"
    return f"{form.format(found.value)} [{form.format(found.low)}, {form.format(found.high)}]"


def _identity(one: Standing) -> str:
    if one.identity is None:
        return ""
    found = one.identity
    told = f"greedy tokens are the adapter's on {found['equal']:,} of {found['rows']:,} held-out rows"
    margins = [f"{first['margin']:.3f}" for first in found["first"] if first["margin"] is not None]
    return told + (
        f"; where they differ first the adapter's logits are apart by {', '.join(margins)}" if margins else ""
    )
