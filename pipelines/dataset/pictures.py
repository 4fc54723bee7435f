"""PNG pictures of what prepare made: where rows went, which labels they have, how long they are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipelines.drawing import figure, png, wrapped
from pipelines.interval import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer

COLORS = ("#1f5fa8", "#d98a1c", "#4b8f5c")
# Inches: narrow enough for a telephone to show the whole picture with its text readable.
WIDTH = 5.6
GONE, LIMIT = "#c8cfd6", "#b3261e"
NO_LABEL = "(no label)"
TOP = 20
BINS = 60
# Beyond this ratio of the widest to the median length, a linear axis shows little but white.
LINEAR_UP_TO = 8
# Of the bounds of logarithmic bins: finer ones would hold two whole numbers here and three there.
RATIO = 1.15
# A limit that many times the longest row is named at the edge: drawn in place it would leave the rows no room.
FAR = 20


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of a sample of each split's rows, in `unit`, and how many rows each split has in all.

    `limit` is the most that training takes, in the same unit; None where there is none.
    """

    unit: Literal["tokens", "characters"]
    limit: int | None
    by_split: dict[str, list[int]]
    totals: dict[str, int]


def funnel(steps: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of horizontal bars: rows left after each step, in light what the step took away.

    A step has `step`, `rows` and, where it removes, `removed`.
    """
    drawn = figure(WIDTH, 1.3 + 0.46 * len(steps))
    axes = drawn.add_subplot()
    y = range(len(steps))
    kept = [step["rows"] for step in steps]
    removed = [step.get("removed", 0) for step in steps]
    axes.barh(y, kept, height=0.62, color=COLORS[0], label="rows left")
    axes.barh(y, removed, height=0.62, left=kept, color=GONE, label="removed by this step")
    widest = max([*(k + r for k, r in zip(kept, removed, strict=True)), 1])
    for i in y:
        text = f"{kept[i]:,}" + (f" ({-removed[i]:,})" if removed[i] else "")
        axes.text(kept[i] + removed[i] + 0.012 * widest, i, text, va="center", fontsize=9)
    axes.set_yticks(y, [wrapped(step["step"]) for step in steps], parse_math=False)
    axes.set_ylim(len(steps) - 0.5, -0.5)
    axes.set_xlim(0, 1.45 * widest)
    axes.set_xlabel("records and rows")
    axes.locator_params(axis="x", integer=True, nbins=4)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _plain(axes, "x")
    drawn.legend(loc="outside lower center", ncols=2, frameon=False)
    return png(drawn)


def by_frequency(labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The labels of split -> label -> rows, the most frequent over all splits first; ties by name."""
    totals: Counter[str] = Counter()
    for counts in labels.values():
        totals.update(counts)
    return sorted(totals, key=lambda label: (-totals[label], label))


def label_shares(labels: Mapping[str, Mapping[str, int]]) -> bytes:
    """PNG of each label's share of each split's rows in %, with Wilson 95 % intervals, for the `TOP` most frequent.

    `labels` is split -> label -> rows; a split without rows is only named.
    """
    shown = by_frequency(labels)[:TOP]
    drawn = figure(WIDTH, 1.9 + max(0.46 * len(shown), 0.6))
    axes = drawn.add_subplot()
    axes.set_prop_cycle(color=COLORS)
    if not shown:
        _say_empty(axes)
        return png(drawn)
    for i, (split, counts) in enumerate(labels.items()):
        offset = 0.24 * (i - (len(labels) - 1) / 2)
        _shares(axes, counts, shown, offset).set_label(f"{split} (n={sum(counts.values()):,})")
    axes.set_yticks(range(len(shown)), [wrapped(label or NO_LABEL) for label in shown], parse_math=False, fontsize=9)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the split's rows in %, with 95 % interval")
    for line in np.arange(len(shown) - 1) + 0.5:
        axes.axhline(line, color="#eeeeee", linewidth=0.8)
    _plain(axes, "x")
    # Three splits of a million rows each have to fit in one line.
    drawn.legend(
        loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8, columnspacing=1.2, handletextpad=0.4
    )
    return png(drawn)


def _shares(axes: "Axes", counts: Mapping[str, int], shown: Sequence[str], offset: float) -> "ErrorbarContainer":
    total = sum(counts.values())
    rates = [wilson(counts.get(label, 0), total) for label in shown] if total else []
    value, low, high = 100 * np.array([(rate.value, rate.low, rate.high) for rate in rates]).reshape(-1, 3).T
    y = np.arange(len(rates)) + offset
    # Of a split without rows nothing is drawn, and unclipped nothing would take up room.
    style: dict[str, Any] = {"fmt": "o", "markersize": 4, "capsize": 2, "clip_on": not total}
    return axes.errorbar(value, y, xerr=[value - low, high - value], **style)


def length_histograms(lengths: Lengths) -> bytes:
    """PNG with a histogram for each split that has rows, on one axis of lengths, the limit drawn in red."""
    splits = {split: np.asarray(values) for split, values in lengths.by_split.items() if len(values)}
    drawn = figure(WIDTH, 1.5 + 1.75 * max(len(splits), 1))
    panels = drawn.subplots(max(len(splits), 1), 1, sharex=True, squeeze=False)[:, 0]
    edges, logarithmic = _edges(splits, lengths.limit)
    for axes, (split, values) in zip(panels, splits.items(), strict=False):
        axes.hist(
            np.maximum(values, edges[0]), bins=edges, weights=np.full(len(values), 100 / len(values)), color=COLORS[0]
        )
        axes.set_title(_title(split, len(values), lengths.totals[split]), parse_math=False, fontsize=10, loc="left")
        axes.set_ylabel("rows in %")
        axes.margins(y=0.2)
        _plain(axes, "y")
        _draw_limit(axes, lengths.limit, edges[-1])
    if not splits:
        _say_empty(panels[0])
        return png(drawn)
    if logarithmic:
        panels[-1].set_xscale("log", subs=[2, 5])
        if edges[-1] < 1000 * edges[0]:
            panels[-1].xaxis.set_minor_formatter("{x:,.0f}")
            panels[-1].tick_params(axis="x", which="both", length=3.5, pad=3.5)
    panels[-1].xaxis.set_major_formatter("{x:,.0f}")
    panels[-1].set_xlabel(f"{lengths.unit} per row" + (" (logarithmic)" if logarithmic else ""))
    return png(drawn)


def _title(split: str, num_counted: int, total: int) -> str:
    return f"{split} (n={num_counted:,}" + (f", a sample of {total:,})" if num_counted < total else ")")


def _edges(splits: Mapping[str, np.ndarray], limit: int | None) -> tuple[np.ndarray, bool]:
    """Bounds of the bins, whole numbers apart where they are linear, and whether they are logarithmic."""
    together = np.concatenate([*splits.values(), [1]] if not splits else [*splits.values()])
    lowest, highest = int(together.min()), max(int(together.max()), 1)
    right = max(highest, limit or 0) if (limit or 0) <= FAR * highest else highest
    if right > LINEAR_UP_TO * np.median(together):
        lowest = max(lowest, 1)
        steps = np.arange(np.log(right / lowest) / np.log(RATIO) + 2)
        return np.unique(np.round(lowest * RATIO**steps)) - 0.5, True
    width = max(-(-(right - lowest + 1) // BINS), 1)
    return np.arange(lowest, right + 2 * width, width) - 0.5, False


def _draw_limit(axes: "Axes", limit: int | None, right: float) -> None:
    if limit is None:
        return
    if limit > right:
        where, text, transform = 1.0, f"limit {limit:,} →", axes.transAxes
    else:
        where, text, transform = float(limit), f"limit {limit:,} ", axes.get_xaxis_transform()
        axes.axvline(limit, color=LIMIT, linewidth=1.5)
    axes.text(where, 0.97, text, color=LIMIT, ha="right", va="top", fontsize=9, transform=transform)


def _say_empty(axes: "Axes") -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no rows", ha="center", va="center", transform=axes.transAxes)


def _plain(axes: "Axes", grid: Literal["x", "y"]) -> None:
    axes.grid(axis=grid, color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
