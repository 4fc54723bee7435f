"""What generate did, as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.row import Row, question
from pipelines.drawing import figure, png, wrapped
from pipelines.generation.attempt import spoken
from pipelines.generation.keeping import KEPT, REASONS, UNASKED, Sifted
from pipelines.interval import wilson
from pipelines.page import environment, sources

EXAMPLES = 6  # kept answers that are shown
OF_EACH_REASON = 2
MOST_LABELS = 40
LONGEST = 2000  # characters of an example
_KEPT, _GONE = "#1f5fa8", "#c9d6e4"
_BINS = 24


def html_report(
    about: Mapping[str, Any], sifted: Sequence[Sifted], rows: Mapping[str, Row], plays: bool, limited: str | None
) -> str:
    """The page's text: no script and no external resource, all strings escaped; the same arguments, the same bytes.

    `about` is what the product says of itself, `rows` those that were asked by id, `limited` why the stage stopped
    early.
    """
    counts = about["generated"]
    unit = "trajectory" if plays else "row"
    asked = [one for one in sifted if one.reason != UNASKED]
    return (
        environment(Path(__file__).parent)
        .get_template("report.html.jinja")
        .render(
            about=about,
            counts=counts,
            unit=unit,
            plays=plays,
            limited=limited,
            share=wilson(counts["num_kept"], len(asked)) if asked else None,
            notices=notices(counts, limited),
            reasons=REASONS,
            labels=_labels(sifted, rows)[:MOST_LABELS],
            num_labels=len(_labels(sifted, rows)),
            pictures=sources(_draw(counts, asked)),
            kept=[_example(one, rows) for one in _spread([s for s in sifted if s.reason == KEPT], EXAMPLES)],
            rejected=[
                (
                    reason,
                    [_example(one, rows) for one in _spread([s for s in asked if s.reason == reason], OF_EACH_REASON)],
                )
                for reason in counts["failures"]
                if reason != UNASKED
            ],
            dollars=dollars,
        )
    )


def notices(counts: Mapping[str, Any], limited: str | None) -> list[str]:
    """What a reader should look into before training on the rows, a sentence each."""
    told, rows = [f"Stopped early: {limited}."] if limited else [], counts["rows"]
    if rows["own"] and counts["num_tries"]:
        told.append(
            f"Rows that keep their own completion, because none of the teacher's answers was kept: {rows['own']:,}."
        )
    if rows["missing"] and counts["num_tries"]:
        told.append(f"Rows left out, because none of the teacher's answers was kept: {rows['missing']:,}.")
    for name in ("error", "no verdict", "judge unread", "judge silent"):
        if number := counts["failures"].get(name):
            told.append(f"Answers lost to {name}: {number:,} of {counts['num_asked']:,}.")
    if counts["num_asked"] and counts["yield"] < 0.1:
        told.append(f"Only {counts['yield']:.1%} of the answers are kept: is this teacher better than its student?")
    return told


def dollars(value: float | None) -> str:
    """0.00123 as $0.00123; a dash for None."""
    if value is None:
        return "-"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.3g}"


def _labels(sifted: Sequence[Sifted], rows: Mapping[str, Row]) -> list[tuple[str, int, int]]:
    """(label, tries asked, kept), the worst first; none where rows have no labels."""
    found: dict[str, list[int]] = {}
    for one in sifted:
        label = rows[one.attempt.row].label
        if label and one.reason != UNASKED:
            numbers = found.setdefault(label, [0, 0])
            numbers[0] += 1
            numbers[1] += one.reason == KEPT
    told = [(label, asked, kept) for label, (asked, kept) in found.items()]
    return sorted(told, key=lambda one: (one[2] / one[1], one[0]))


def _spread(found: Sequence[Sifted], count: int) -> list[Sifted]:
    """So many of them, evenly from first to last."""
    step = max(len(found) / count, 1.0)
    return [found[int(number * step)] for number in range(min(count, len(found)))]


def _example(one: Sifted, rows: Mapping[str, Row]) -> dict[str, Any]:
    row, attempt = rows[one.attempt.row], one.attempt
    text = spoken(attempt.completion(row)) if attempt.text is not None else str(attempt.error)
    return {
        "row": row.id,
        "number": attempt.number,
        "question": question(row.prompt)[:LONGEST],
        "expected": row.answer if not attempt.played else "",
        "text": text[:LONGEST] + ("..." if len(text) > LONGEST else ""),
        "detail": one.detail[:LONGEST],
        "num_tokens": attempt.num_tokens,
        "num_turns": attempt.num_turns,
        "num_calls": attempt.num_calls,
        "num_failed": attempt.num_failed,
        "cost": attempt.cost,
    }


def _draw(counts: Mapping[str, Any], asked: Sequence[Sifted]) -> dict[str, bytes]:
    if not counts["num_tries"]:
        return {}
    drawn = {"fates": _fates(counts)}
    lengths = [(one.attempt.num_tokens, one.reason == KEPT) for one in asked if one.attempt.num_tokens is not None]
    if lengths:
        drawn["tokens"] = _tokens(lengths)
    return drawn


def _fates(counts: Mapping[str, Any]) -> bytes:
    """PNG of horizontal bars: the tries by what became of them."""
    told = {KEPT: counts["num_kept"], **counts["failures"]}
    drawn = figure(9.5, 1.1 + 0.42 * len(told))
    axes = drawn.add_subplot()
    colors = [_KEPT if name == KEPT else _GONE for name in told]
    axes.barh(range(len(told)), list(told.values()), height=0.62, color=colors)
    widest = max(*told.values(), 1)
    for place, number in enumerate(told.values()):
        text = f"{number:,} ({number / counts['num_tries']:.1%})"
        axes.text(number + 0.012 * widest, place, text, va="center", fontsize=9)
    axes.set_yticks(range(len(told)), [wrapped(name) for name in told])
    axes.set_ylim(len(told) - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * widest)
    axes.set_xlabel(f"tries (of {counts['num_tries']:,})")
    axes.locator_params(axis="x", integer=True, nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    return png(drawn)


def _tokens(lengths: Sequence[tuple[int, bool]]) -> bytes:
    """PNG of histograms: tokens that a try took, of the kept and of all others."""
    drawn = figure(9.5, 3.0)
    axes = drawn.add_subplot()
    most = max(number for number, _ in lengths)
    edges = np.linspace(0, most + 1, min(_BINS, most + 1) + 1)
    by_fate = {name: [n for n, kept in lengths if kept == fate] for name, fate in (("kept", True), ("not kept", False))}
    axes.hist(
        list(by_fate.values()),
        bins=list(edges),
        stacked=True,
        color=[_KEPT, _GONE],
        label=[f"{name} (n = {len(values):,})" for name, values in by_fate.items()],
    )
    axes.set_xlabel("tokens that the teacher wrote in a try")
    axes.set_ylabel("tries")
    axes.locator_params(axis="y", integer=True, nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return png(drawn)
