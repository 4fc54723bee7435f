"""PNG pictures of the findings; matplotlib is imported inside, because a score needs none of it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipelines.drawing import figure, png, wrapped
from pipelines.evaluation.confidence_pictures import reliability_diagrams, selective_curves
from pipelines.evaluation.findings import Findings
from pipelines.evaluation.intents import Confusion, Intent, confusion, intent_table, worst
from pipelines.evaluation.measure import Measure
from pipelines.evaluation.record import HELDOUT, RED_TEAM, ROBUSTNESS, of
from pipelines.evaluation.styles import WIDTH, Style, bare, styles
from pipelines.interval import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURACY, P50, P95 = "correctness/accuracy", "cost/latency_p50", "cost/latency_p95"
LINEAR_UP_TO = 12
Bar = tuple[str, dict[str, tuple[Interval, int]]]  # a name, and of each subject the accuracy and its rows


def draw(findings: Findings, most: int) -> dict[str, bytes]:
    """The report's pictures by name, two with `most` of the worst intents; one without anything to show is left out."""
    setup, look = findings.setup, styles(findings)
    pair = {name: look[name] for name in dict.fromkeys((setup.candidate, setup.reference))}
    intents = worst_intents(findings, most)
    pictures = {}
    if overall := overall_bar(findings, list(pair)):
        pictures["accuracy_bars"] = accuracy_bars([overall, *(_bar(intent, list(pair)) for intent in intents)], pair)
    if findings.reliability:
        pictures["reliability"] = reliability_diagrams(findings, list(look))
        pictures["selective_accuracy"] = selective_curves(findings, look)
    if kinds := by_kind(findings, f"{RED_TEAM}/attack_success_rate"):
        pictures["attack_success"] = dots(kinds, look, "attacks that won, in %, with 95 % interval")
    if kinds := by_kind(findings, f"{ROBUSTNESS}/consistency"):
        pictures["consistency"] = dots(kinds, look, "perturbed rows answered as before, in %, with 95 % interval")
    if all(findings.value(setup.candidate, key) for key in (ACCURACY, P50, P95)):
        pictures["pass_rate_latency"] = pass_rate_latency(findings, look)
    if setup.options and intents:
        table = confusion(of(findings.records, HELDOUT, setup.candidate), [intent.label for intent in intents])
        pictures["confusion"] = confusion_map(table, f"What {setup.candidate} answers on its worst intents")
    return pictures


def worst_intents(findings: Findings, most: int) -> list[Intent]:
    """The candidate's worst labels; none where rows have no label."""
    setup = findings.setup
    answers = {name: of(findings.records, HELDOUT, name) for name in setup.subjects}
    table = intent_table(answers, setup.resamples, setup.seed)
    return worst([intent for intent in table if intent.label], most, setup.candidate)


def overall_bar(findings: Findings, subjects: Sequence[str]) -> Bar | None:
    """The subjects' accuracy on all in-scope rows; None where none is judged."""
    found = {name: findings.value(name, ACCURACY) for name in subjects}
    known = {name: (_interval(measure), measure.num_rows) for name, measure in found.items() if measure is not None}
    return ("all in scope", known) if known else None


def _bar(intent: Intent, subjects: Sequence[str]) -> Bar:
    known = {name: intent.results[name] for name in subjects if name in intent.results}
    return intent.label, {name: (result.accuracy, result.num_rows) for name, result in known.items()}


def _interval(measure: Measure) -> Interval:
    low, high = (measure.value if bound is None else bound for bound in (measure.low, measure.high))
    return Interval(measure.value, low, high)


def accuracy_bars(bars: Sequence[Bar], look: Mapping[str, Style]) -> bytes:
    """PNG of horizontal bars: the subjects' accuracy in % with its 95 % interval, a bar each for every name."""
    drawn = figure(WIDTH + 0.6, 1.5 + (0.3 + 0.19 * len(look)) * len(bars))
    axes = drawn.add_subplot()
    height = 0.8 / len(look)
    for place, (subject, style) in enumerate(look.items()):
        rows = [i for i, (_, found) in enumerate(bars) if subject in found]
        y = np.array(rows) + height * (place - (len(look) - 1) / 2)
        found = [bars[i][1][subject][0] for i in rows]
        value, low, high = 100 * np.array([(one.value, one.low, one.high) for one in found]).reshape(-1, 3).T
        axes.barh(y, value, height=0.92 * height, color=style.color, label=subject)
        axes.errorbar(value, y, xerr=[value - low, high - value], fmt="none", ecolor="black", capsize=2, elinewidth=1)
        for row in range(len(rows)):
            text = f"{value[row]:.1f} [{low[row]:.0f}, {high[row]:.0f}]"
            axes.text(102, y[row], text, va="center", fontsize=8, color="#333333")
    axes.set_yticks(range(len(bars)), [_named(bar) for bar in bars], parse_math=False, fontsize=9)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy in %, with 95 % interval")
    bare(axes, "x")
    drawn.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return png(drawn)


def _named(bar: Bar) -> str:
    """The name with the rows that each subject answered: one number where they are the same."""
    name, found = bar
    sizes = list(dict.fromkeys(f"{count:,}" for _, count in found.values()))
    return f"{wrapped(name)} (n={', '.join(sizes)})"


def by_kind(findings: Findings, key: str) -> dict[str, dict[str, Measure]]:
    """The measures of a metric over all and by kind: name -> subject -> measure."""
    found: dict[str, dict[str, Measure]] = {}
    for subject in findings.setup.subjects:
        for measure in findings.measures[subject]:
            if measure.key == key or measure.key.startswith(f"{key}_"):
                kind = measure.key.removeprefix(key).removeprefix("_") or "all kinds"
                found.setdefault(kind, {})[subject] = measure
    return found


def dots(kinds: Mapping[str, Mapping[str, Measure]], look: Mapping[str, Style], axis: str) -> bytes:
    """PNG of shares in % with their 95 % intervals: a line for each kind, a marker for each subject."""
    drawn = figure(WIDTH, 1.4 + (0.26 + 0.17 * len(look)) * len(kinds))
    axes = drawn.add_subplot()
    step = 0.7 / max(len(look), 2)
    for place, (subject, style) in enumerate(look.items()):
        rows = [(i, found[subject]) for i, found in enumerate(kinds.values()) if subject in found]
        if not rows:
            continue
        y = np.array([i for i, _ in rows]) + step * (place - (len(look) - 1) / 2)
        found = [_interval(measure) for _, measure in rows]
        value, low, high = 100 * np.array([(one.value, one.low, one.high) for one in found]).T
        axes.errorbar(
            value,
            y,
            xerr=[value - low, high - value],
            fmt=style.marker,
            color=style.color,
            markersize=5,
            capsize=2,
            markeredgecolor="black",
            markeredgewidth=0.5,
            label=subject,
            clip_on=False,
        )
    axes.set_yticks(range(len(kinds)), [_counted(k, found) for k, found in kinds.items()], parse_math=False, fontsize=9)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel(axis)
    for line in np.arange(len(kinds) - 1) + 0.5:
        axes.axhline(line, color="#eeeeee", linewidth=0.8)
    bare(axes, "x")
    drawn.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return png(drawn)


def _counted(kind: str, found: Mapping[str, Measure]) -> str:
    sizes = sorted({measure.num_rows for measure in found.values()})
    told = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return f"{wrapped(kind)}\n(n={told})"


def pass_rate_latency(findings: Findings, look: Mapping[str, Style]) -> bytes:
    """PNG of accuracy against the median latency of one answer, a line on to its 95th percentile, a point a subject."""
    drawn = figure(WIDTH, 4.0)
    axes = drawn.add_subplot()
    for name, style in look.items():
        accuracy, p50, p95 = (findings.value(name, key) for key in (ACCURACY, P50, P95))
        if accuracy is None or p50 is None or p95 is None:
            continue
        y, x = _interval(accuracy), 1000 * p50.value
        label = f"{name} (n={accuracy.num_rows:,}; {p50.num_rows:,} timed)"
        axes.plot([x, 1000 * p95.value], [100 * y.value] * 2, color=style.color, linewidth=1.2)
        axes.plot([1000 * p95.value], [100 * y.value], marker="|", markersize=8, color=style.color)
        axes.errorbar(
            [x],
            [100 * y.value],
            yerr=[[100 * (y.value - y.low)], [100 * (y.high - y.value)]],
            fmt=style.marker,
            color=style.color,
            markersize=7,
            capsize=3,
            markeredgecolor="black",
            markeredgewidth=0.6,
            label=label,
        )
    _scale_time(axes, [1000 * m.value for m in (findings.value(n, k) for n in look for k in (P50, P95)) if m])
    axes.set_ylim(0, 103)
    axes.set_xlabel("ms an answer: marker at the median, line to the 95th percentile")
    axes.set_ylabel("accuracy in %, with 95 % interval")
    bare(axes, "both")
    drawn.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    return png(drawn)


def _scale_time(axes: "Axes", times: Sequence[float]) -> None:
    """From 0, or logarithmic where a linear axis would crowd the fast subjects at its edge."""
    if max(times) > LINEAR_UP_TO * min(times):
        axes.set_xscale("log", subs=[2, 5])
        axes.set_xlim(min(times) / 1.5, max(times) * 1.5)
        axes.xaxis.set_minor_formatter("{x:,.0f}")
        axes.tick_params(axis="x", which="both", length=3.5, pad=3.5)
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")


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
