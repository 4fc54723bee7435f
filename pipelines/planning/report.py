"""The plan for people: lines for a terminal, a Markdown file and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.page import environment

HEAD = (
    "card",
    "cards",
    "by",
    "weights",
    "adapter",
    "grad",
    "optim",
    "activ",
    "peak",
    "over",
    "total",
    "of",
    "",
    "batch",
    "length",
    "tokens/s",
)
SHORT = ("weights", "adapter", "gradients", "optimizer states", "activations")


def terminal(plan: Mapping[str, Any]) -> list[str]:
    """Headline, aligned table, notes."""
    table = [heading(plan), *(cells(plan, row) for row in plan["rows"])]
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return [*headline(plan), "", *lines, "", *legend(plan), *plan["notes"]]


def markdown(plan: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    table = [heading(plan), ["-:"] * len(heading(plan)), *(cells(plan, row) for row in plan["rows"])]
    body = [f"| {' | '.join(line)} |" for line in table]
    told = [f"- {line}" for line in [*legend(plan), *plan["notes"]]]
    title = f"# Plan: {plan['stage']}, {plan['model']['name']}, {plan['adapter']['name']}"
    return "\n".join([title, "", *headline(plan), "", *body, "", *told, ""])


def page(plan: Mapping[str, Any]) -> str:
    """The same as one self-contained page."""
    template = environment(Path(__file__).parent).get_template("report.html.jinja")
    rows = [cells(plan, row) for row in plan["rows"]]
    told = [*legend(plan), *plan["notes"]]
    return template.render(plan=plan, headline=headline(plan), heading=heading(plan), rows=rows, told=told)


def headline(plan: Mapping[str, Any]) -> list[str]:
    """What is planned, in two or three lines."""
    model, setting = plan["model"], plan["setting"]
    active = f", {_billions(model['active'])} active" if model["experts"] else ""
    on = plan["checkpointing"]["on"], plan["checkpointing"]["off"]
    lines = [
        f"{plan['stage']} of {model['name']}: {_billions(model['total'])} parameters{active}; "
        f"{plan['adapter']['name']}: {plan['adapter']['parameters']:,} trained",
        f"micro-batch {setting['micro_batch']} of {setting['length']:,} tokens, checkpointing "
        f"{'on' if setting['checkpointing'] else 'off'} (on: {on[0]['total']:.1f} GiB on one card, off: "
        f"{on[1]['total']:.1f}); "
        f"{plan['flops_per_token'] / 1e9:.1f} GFLOP a token",
    ]
    if found := plan["configured"]:
        fits = "fits" if found["total"] <= found["available"] else "does not fit"
        lines.append(f"{found['compute']}: {found['total']:.1f} of {found['available']:.1f} GiB, {fits}")
        if found["auto"]:
            lines.append(f"plan.auto=true would take {' '.join(found['auto'])}")
    return lines


def heading(plan: Mapping[str, Any]) -> list[str]:
    """The table's columns; cost where there is a price."""
    return [*HEAD, "hours", *(["cost"] if plan["rows"][0]["cost"] is not None else [])]


def cells(plan: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """One machine as text."""
    parts = dict(row["parts"])
    sizes = [parts.pop(name) for name in SHORT]
    overhead = parts.pop("CUDA and allocator")
    found = [
        f"{row['memory_gb']:g} GB",
        str(row["cards"]),
        row["strategy"],
        *(f"{size:.1f}" for size in (*sizes, sum(parts.values()), overhead)),
        f"{row['total']:.1f}",
        f"{row['available']:.1f}",
        "fits" if row["fits"] else "-",
        str(row["largest_micro_batch"] or "-"),
        f"{row['longest_sequence']:,}" if row["longest_sequence"] else "-",
        span(row["tokens_per_second"]) if row["fits"] else "-",
        span(row["hours"]) if row["fits"] else "-",
    ]
    return found if row["cost"] is None else [*found, span(row["cost"]) if row["fits"] else "-"]


def legend(plan: Mapping[str, Any]) -> list[str]:
    """What the columns mean."""
    moments = sorted({name for row in plan["rows"] for name in row["parts"]} - {*SHORT, "CUDA and allocator"})
    return [
        f"GiB a card; peak: on top, during {' or '.join(moments)}; over: CUDA and allocator; batch: the largest "
        f"micro-batch of that length; length: the longest sequence at micro-batch 1; hours and cost: of "
        f"{plan['tokens']:,} tokens",
    ]


def span(pair: Sequence[float]) -> str:
    """From and to, in three figures."""
    return "-".join(_figure(value) for value in pair)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _billions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 10**8 else f"{number / 1e6:.2f} M"
