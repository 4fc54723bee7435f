"""PNG pictures of confidences: whether they say how often an answer is right, and what trusting them gains."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.drawing import figure, png
from pipelines.evaluation.calibration import Bin
from pipelines.evaluation.findings import Findings
from pipelines.evaluation.record import HELDOUT, of
from pipelines.evaluation.reliability import Reliability
from pipelines.evaluation.styles import WIDTH, Style, bare
from pipelines.interval import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER = "#d55e00", "#0b4a86"
COUNTED = 20  # bins of the histogram
BANDED = 200  # points of a curve with an interval; more can't be told apart


def reliability_diagrams(findings: Findings, subjects: Sequence[str]) -> bytes:
    """PNG with two panels a subject: accuracy against confidence, and how often each confidence is told."""
    known = [name for name in subjects if name in findings.reliability]
    drawn = figure(WIDTH, 0.6 + 4.6 * len(known))
    panels = drawn.subplots(2 * len(known), 1, height_ratios=[3, 1.1] * len(known), squeeze=False)[:, 0]
    for number, name in enumerate(known):
        _diagram(panels[2 * number], name, findings.reliability[name])
        _counts(panels[2 * number + 1], findings, name)
    handles, labels = panels[0].get_legend_handles_labels()
    if not findings.reliability[known[0]].after:
        handles, labels = next(
            (axes.get_legend_handles_labels() for axes in panels[2::2] if len(axes.get_legend_handles_labels()[1]) > 2),
            (handles, labels),
        )
    drawn.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return png(drawn)


def _diagram(axes: "Axes", name: str, found: Reliability) -> None:
    axes.plot([0, 100], [0, 100], color="#888888", linewidth=1, linestyle=":", label="perfect")
    _bins(axes, found.before, color=BEFORE, marker="o", markerfacecolor="white", linestyle="--", label="as told")
    _bins(axes, found.after, color=AFTER, marker="s", linestyle="-", label="after the temperature")
    axes.set_title(f"{name} (n={found.num_rows:,})", parse_math=False, fontsize=10, loc="left")
    axes.set_xlim(0, 101)
    axes.set_ylim(0, 103)
    axes.set_ylabel("accuracy in %,\nwith 95 % interval")
    bare(axes, "both")


def _bins(axes: "Axes", bins: Sequence[Bin], **style: Any) -> None:
    if not bins:
        return
    x = 100 * np.array([one.confidence for one in bins])
    value, low, high = 100 * np.array([(one.accuracy.value, one.accuracy.low, one.accuracy.high) for one in bins]).T
    axes.errorbar(x, value, yerr=[value - low, high - value], capsize=2, markersize=5, linewidth=1.2, **style)


def _counts(axes: "Axes", findings: Findings, name: str) -> None:
    """Rows by confidence; the same rows as in the diagram above."""
    known = [r for r in of(findings.records, HELDOUT, name) if r.confidence is not None and r.correct is not None]
    edges = np.linspace(0, 100, COUNTED + 1).tolist()
    told = [100 * r.confidence for r in known if r.confidence is not None]
    axes.hist(told, bins=edges, histtype="step", color=BEFORE, linestyle="--", linewidth=1.3)
    if findings.reliability[name].after:
        calibrated = [100 * r.calibrated for r in known if r.calibrated is not None]
        axes.hist(calibrated, bins=edges, histtype="step", color=AFTER, linewidth=1.3)
    axes.set_xlim(0, 101)
    axes.set_xlabel("confidence in %")
    axes.set_ylabel("rows")
    axes.locator_params(axis="y", integer=True, nbins=3)
    bare(axes, "y")


def selective_curves(findings: Findings, look: Mapping[str, Style]) -> bytes:
    """PNG of accuracy on the rows that a subject is surest of, against the share of such rows, a line a subject."""
    drawn = figure(WIDTH, 4.2)
    axes = drawn.add_subplot()
    lowest = 100.0
    for name in (name for name in look if name in findings.reliability):
        found, style = findings.reliability[name], look[name]
        coverage, accuracy = 100 * np.array(found.curve).T
        label = f"{name} (n={found.num_rows:,})"
        axes.plot(coverage, accuracy, color=style.color, linestyle=style.line, linewidth=1.6, label=label)
        shown = found.curve[:: -(-len(found.curve) // BANDED)]
        low, high = 100 * np.array([_bounds(share, right, found.num_rows) for share, right in shown]).T
        at = 100 * np.array([share for share, _ in shown])
        axes.fill_between(at, low, high, color=style.color, alpha=0.18, linewidth=0)
        lowest = min(lowest, *low[at >= 10], accuracy[-1])
    axes.set_xlim(0, 100)
    axes.set_ylim(max(0.0, 10 * np.floor(lowest / 10)), 101)
    axes.set_xlabel("coverage: the surest rows, in % of all with a confidence")
    axes.set_ylabel("accuracy on them in %,\nwith 95 % interval")
    bare(axes, "both")
    drawn.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return png(drawn)


def _bounds(coverage: float, accuracy: float, num_rows: int) -> tuple[float, float]:
    covered = round(coverage * num_rows)
    found = wilson(round(accuracy * covered), covered)
    return found.low, found.high
