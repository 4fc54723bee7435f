"""The evaluation as one self-contained HTML page, every number with attributes that say what it is."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.evaluation import numbers
from pipelines.evaluation.calibration import Bin
from pipelines.evaluation.findings import Findings, definitions
from pipelines.evaluation.heldout import Heldout
from pipelines.evaluation.intents import Intent, intent_table
from pipelines.evaluation.measure import Measure
from pipelines.evaluation.numbers import Compared
from pipelines.evaluation.record import HELDOUT, RED_TEAM, Record, of
from pipelines.evaluation.side_by_side import asked, confidently_wrong, lost, rows
from pipelines.evaluation.slices import Slice
from pipelines.page import environment, sources

ACCURACY = "correctness/accuracy"
CHAMPION = "champion"
# Metrics of correctness that say how an answer looks, not how good it is.
FORM = ("unparsed_rate", "unfinished_rate")
MOST_SUBJECTS = 4  # side by side
MOST_SLICES = 12
MOST_ATTACKS = 20
SHOWN = (
    numbers.between,
    numbers.p_value,
    numbers.rate,
    numbers.rows,
    numbers.size,
    numbers.step,
    numbers.tagged,
    numbers.value,
)
COVERAGES = (0.2, 0.4, 0.6, 0.8, 1.0)

SUITES = {
    "correctness": "Correctness",
    "refusal": "Refusal",
    "calibration": "Calibration",
    "faithfulness": "Faithfulness",
    "judge": "Judge",
    "red_team": "Red team",
    "robustness": "Robustness",
    "cost": "Cost",
}


def page(
    findings: Findings,
    pictures: Mapping[str, bytes],
    heldout: Heldout,
    provenance: Mapping[str, str],
    worst: int,
) -> str:
    """The page's text: no script and no external resource, all strings escaped.

    `pictures` as `draw` returns them; `provenance` is printed as name and value; at most `worst` rows of each kind
    are shown side by side. The same arguments give the same bytes.
    """
    templates = environment(Path(__file__).parent)
    templates.globals |= {part.__name__: part for part in SHOWN} | {"asked": asked}
    templates.filters["short"] = _short
    setup, table = findings.setup, rows(findings)
    key, rivals = headline(findings), opponents(findings)
    losses = lost(table, setup.candidate, rivals, key.partition("/")[2] if key else None, worst)
    return templates.get_template("report.html.jinja").render(
        findings=findings,
        setup=setup,
        headline=key,
        verdicts=list(verdicts(findings)),
        against=comparison(findings, rivals[0], key) if rivals and key else None,
        rivals=rivals,
        comparisons={other: comparisons(findings, other) for other in findings.comparisons},
        suites=list(suites(findings)),
        pictures=sources(pictures),
        slices=findings.slices,
        worst_slices=worst_slices(findings),
        labels=[intent for intent in _intents(findings) if intent.label],
        bins=list(bins(findings)),
        curves=list(curves(findings)),
        pair=list(dict.fromkeys((setup.candidate, setup.reference))),
        shown=side_by_side_subjects(findings),
        most=worst,
        sections=[("lost", losses), ("wrong", confidently_wrong(table, setup.candidate, losses, worst))],
        attacks=attacks(findings),
        heldout=heldout,
        heldout_labels=label_counts(heldout),
        ngram_sizes=ngram_sizes(heldout),
        definitions=definitions(findings),
        provenance=provenance,
    )


def answers_table(findings: Findings) -> list[dict[str, Any]]:
    """One flat record per held-out row: what was asked and expected, and each subject's answer and verdict."""
    found = []
    for row in rows(findings):
        flat: dict[str, Any] = {
            "row_id": row.row_id,
            "source": row.source,
            "label": row.label,
            "prompt": row.prompt,
            "expected": row.expected,
        }
        for subject, record in row.answers.items():
            flat[subject] = None if record is None else record.answer
            flat[f"{subject}_correct"] = None if record is None else record.correct
        found.append(flat)
    return found


def headline(findings: Findings) -> str | None:
    """The metric that the verdict is about: accuracy, or where nothing judges the first other one of correctness."""
    keys = [measure.key for measure in findings.measures[findings.candidate] if measure.low is not None]
    of_answers = [key for key in keys if key.startswith("correctness/") and not key.endswith(FORM)]
    return next((key for key in (ACCURACY, *of_answers, *keys) if key in keys), None)


def opponents(findings: Findings) -> list[str]:
    """Whom the verdict is against: the reference and the champion; else whoever there is."""
    wanted = [name for name in (findings.setup.reference, CHAMPION) if name in findings.comparisons]
    return list(dict.fromkeys(wanted)) or list(findings.comparisons)


def verdicts(findings: Findings) -> Iterator[Markup]:
    """A sentence for each opponent; one that no difference is shown says how large one could have been missed."""
    key, candidate = headline(findings), findings.candidate
    if key is None:
        yield Markup("Nothing here measures how good an answer is.")
        return
    metric = key.partition("/")[2]
    for other in opponents(findings):
        found = findings.comparisons[other].get(key)
        told = comparison(findings, other, key)
        if found is None or told is None:
            yield Markup("{} and {} share no row that tells their {}.").format(candidate, other, metric)
            continue
        numbers_told = Markup("{} ({}), p {}, n = {}").format(told.difference, told.bounds, told.p, told.num_rows)
        if found.difference.low > 0 or found.difference.high < 0:
            more = "higher" if found.difference.low > 0 else "lower"
            side = "above" if found.difference.low > 0 else "below"
            yield Markup("<b>{} has a {} {} than {}</b>: {}; the interval lies {} 0.").format(
                candidate, more, metric, other, numbers_told, side
            )
        else:
            said = Markup("<b>No difference in {} between {} and {} is shown</b>: {}; the interval includes 0. {}")
            yield said.format(metric, candidate, other, numbers_told, _missed(told))
    if not findings.comparisons:
        yield Markup("{} was judged alone; there is nothing to compare it with.").format(candidate)


def _missed(told: Compared) -> Markup:
    if told.detectable == numbers.NONE:
        return Markup("That is no proof of equality: these rows don't say how large a difference they would miss.")
    return Markup("That is no proof of equality: a true difference below {} would often be missed.").format(
        told.detectable
    )


def comparison(findings: Findings, other: str, key: str) -> Compared | None:
    """The candidate against another subject by one metric; None where they share no observation of it."""
    found, measure = findings.comparisons[other].get(key), findings.value(findings.candidate, key)
    if found is None or measure is None:
        return None
    return Compared(found, measure.unit, {"subject": findings.candidate, "metric": key, "other": other})


def comparisons(findings: Findings, other: str) -> list[tuple[str, Compared]]:
    """The candidate against another subject by every metric that both have."""
    found = [(key, comparison(findings, other, key)) for key in findings.comparisons[other]]
    return [(key, told) for key, told in found if told is not None]


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite's title and its lines: a metric with the measure of each subject, None where it has none."""

    title: str
    lines: list[tuple[str, dict[str, Measure | None]]]


def suites(findings: Findings) -> Iterator[Suite]:
    """Every measure there is, suite by suite."""
    found: dict[str, dict[str, dict[str, Measure | None]]] = {suite: {} for suite in SUITES}
    for subject in findings.setup.subjects:
        for measure in findings.measures[subject]:
            line = found.setdefault(measure.suite, {}).setdefault(measure.name, dict.fromkeys(findings.setup.subjects))
            line[subject] = measure
    for suite, lines in found.items():
        if lines:
            yield Suite(SUITES.get(suite, f"Harness task {suite}"), list(lines.items()))


def worst_slices(findings: Findings) -> list[Slice]:
    """The least accurate slices, worst first."""
    order = sorted(findings.slices.slices, key=lambda s: (s.accuracy.value, -s.num_rows, s.column, s.value))
    return order[:MOST_SLICES]


def _intents(findings: Findings) -> list[Intent]:
    names = dict.fromkeys((findings.setup.candidate, findings.setup.reference))
    answers = {name: of(findings.records, HELDOUT, name) for name in names}
    return intent_table(answers, findings.setup.resamples, findings.setup.seed)


def bins(findings: Findings) -> Iterator[tuple[str, str, list[Bin]]]:
    """(subject, when, bins) of each reliability diagram that has some."""
    for subject, found in findings.reliability.items():
        yield subject, "as told", found.before
        if found.after:
            yield subject, "after the temperature", found.after


def curves(findings: Findings) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """(subject, points) of each selective accuracy curve: its first point at or over each of the coverages."""
    for subject, found in findings.reliability.items():
        yield subject, [next(point for point in found.curve if point[0] >= share - 1e-9) for share in COVERAGES]


def side_by_side_subjects(findings: Findings) -> list[str]:
    """The subjects whose answers are shown: reference, champion, candidate, and others while there is room."""
    setup = findings.setup
    others = [name for name in (setup.reference, CHAMPION, *setup.subjects) if name in setup.subjects]
    order = [name for name in dict.fromkeys(others) if name != setup.candidate]
    return [*order[: MOST_SUBJECTS - 1], setup.candidate]


def attacks(findings: Findings) -> dict[str, Any]:
    """The attacks that won against the candidate: how many of each kind, and some of each."""
    tried = [r for r in of(findings.records, RED_TEAM, findings.candidate) if r.correct is not None]
    by_kind: dict[str, list[Record]] = {}
    for record in tried:
        by_kind.setdefault(record.kind, [])
        if not record.correct:
            by_kind[record.kind].append(record)
    # One of each kind in turn, so that a frequent kind doesn't crowd out the others.
    turns = sorted((turn, kind) for kind, won in by_kind.items() for turn in range(len(won)))
    chosen = sorted((kind, turn) for turn, kind in turns[:MOST_ATTACKS])
    sizes = {kind: sum(record.kind == kind for record in tried) for kind in by_kind}
    return {
        "counts": [(kind, len(won), sizes[kind]) for kind, won in sorted(by_kind.items())],
        "shown": [by_kind[kind][turn] for kind, turn in chosen],
        "won": sum(map(len, by_kind.values())),
        "tried": len(tried),
    }


def label_counts(heldout: Heldout) -> list[tuple[str, int]]:
    """The held-out rows of each label, by name; none where rows have no label."""
    found: dict[str, int] = {}
    for row in heldout.rows:
        if row.label:
            found[row.label] = found.get(row.label, 0) + 1
    return sorted(found.items())


def ngram_sizes(heldout: Heldout) -> list[str]:
    """The n-gram sizes of the contamination report, the longest first."""
    against = (heldout.contamination or {}).get("against", {})
    return sorted({size for found in against.values() for size in found["ngrams"]}, key=int, reverse=True)


def _short(told: str) -> str:
    """A digest's beginning; other values as they are."""
    found = re.fullmatch(r"(sha256:)?([0-9a-f]{12})[0-9a-f]{20,}", told)
    return f"{found[1] or ''}{found[2]}" if found else told
