"""PNG pictures of the scores; matplotlib is imported inside, because a score needs none of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipelines.drawing import figure, png, wrapped
from pipelines.evaluation.evidence import ADAPTER, Evidence
from pipelines.evaluation.intents import Confusion, Intent, confusion
from pipelines.interval import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer

COLORS = ("#8d99a6", "#1f5fa8")


def draw(evidence: Evidence) -> dict[str, bytes]:
    """The report's pictures by name; `confusion` is left out where the adapter has no wrong answer."""
    bars = [evidence.overall, *evidence.worst]
    pictures = {"accuracy_bars": accuracy_bars(bars, "Accuracy overall and on the adapter's worst intents")}
    labels = [intent.label for intent in evidence.worst]
    if labels:
        table = confusion(evidence.rows, evidence.answers[ADAPTER], labels)
        pictures["confusion"] = confusion_map(table, "What the adapter answers on its worst intents")
    return pictures


def confusion_map(table: Confusion, title: str) -> bytes:
    """PNG heat map: true labels down, answered labels across.

    A cell shows its count (none for 0) and is coloured by its share of the row.
    """
    counts = table.counts
    drawn = figure(5.0 + 0.45 * counts.shape[1], 3.6 + 0.45 * counts.shape[0])
    axes = drawn.add_subplot()
    sizes = counts.sum(axis=1)
    shares = counts / np.maximum(sizes, 1)[:, None]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in np.argwhere(counts):
        color = "white" if shares[i, j] > 0.55 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=color, fontsize=9)
    true = [f"{wrapped(label)} (n={size})" for label, size in zip(table.labels, sizes, strict=True)]
    _label_cells(axes, true, [wrapped(name) for name in table.columns])
    axes.set_title(f"{title} (n={counts.sum()})", parse_math=False, pad=10)
    drawn.colorbar(image, ax=axes, label="share of the true label's rows", shrink=0.8)
    return png(drawn)


def accuracy_bars(intents: Sequence[Intent], title: str) -> bytes:
    """PNG of horizontal bars: two subjects' accuracy in % with its 95 % interval, one pair per intent."""
    drawn = figure(7.8, 1.8 + 0.66 * len(intents))
    axes = drawn.add_subplot()
    for subject, color, offset in zip(intents[0].results, COLORS, (-0.2, 0.2), strict=True):
        accuracies = [intent.results[subject].accuracy for intent in intents]
        _bars(axes, accuracies, offset, color).set_label(subject)
    names = [f"{wrapped(intent.label)} (n={intent.num_rows})" for intent in intents]
    axes.set_yticks(range(len(intents)), names, parse_math=False)
    axes.set_ylim(len(intents) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy in %, with 95 % interval")
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.suptitle(title, parse_math=False)
    drawn.legend(loc="outside lower center", ncols=2, frameon=False)
    return png(drawn)


def _bars(axes: "Axes", accuracies: Sequence[Interval], offset: float, color: str) -> "BarContainer":
    value, low, high = 100 * np.array([(a.value, a.low, a.high) for a in accuracies]).T
    y = np.arange(len(accuracies)) + offset
    bars = axes.barh(y, value, height=0.36, color=color)
    axes.errorbar(value, y, xerr=[value - low, high - value], fmt="none", ecolor="black", capsize=2, elinewidth=1)
    for row in range(len(accuracies)):
        text = f"{value[row]:.1f} [{low[row]:.0f}, {high[row]:.0f}]"
        axes.text(101.5, y[row], text, va="center", fontsize=8, color="#333333")
    return bars


def _label_cells(axes: "Axes", true: Sequence[str], answered: Sequence[str]) -> None:
    axes.set_xticks(range(len(answered)), answered, rotation=90, parse_math=False, fontsize=8)
    axes.set_yticks(range(len(true)), true, parse_math=False, fontsize=8)
    axes.set_xticks(np.arange(len(answered) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(true) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#cccccc", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.axvline(len(true) - 0.5, color="black", linewidth=1)
    axes.set_xlabel("answered")
    axes.set_ylabel("true label")
