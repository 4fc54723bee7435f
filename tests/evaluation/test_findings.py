"""Every number of the page against one that is computed again from the Parquet table by other code."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.evaluation.findings import Findings, definitions, find, load
from pipelines.evaluation.heldout import Heldout
from pipelines.evaluation.measure import Measure
from pipelines.evaluation.record import HELDOUT, LATENCY, VALIDATION, write
from pipelines.evaluation.report import page, side_by_side_subjects
from tests.evaluation import recomputed
from tests.evaluation.by_hand import Number
from tests.evaluation.example import CARD, CONTAMINATION, HARNESS, NUM_OUTSIDE, NUM_ROWS, asked_rows, made
from tests.evaluation.shown import Key, Numbers, Shown, key

WORST = 8
NUMBERED = dict.fromkeys(("reliability", "selective_accuracy"), b"a picture with a table below it")
COUNTED = {"n", "gained", "lost", "wrong", "p"}


@pytest.fixture(scope="module")
def html(findings: Findings, heldout: Heldout) -> str:
    return page(findings, NUMBERED, heldout, {"run": "0123"}, WORST)


@pytest.fixture(scope="module")
def numbers(html: str) -> Numbers:
    return Numbers(html)


@pytest.fixture(scope="module")
def expected(table: Path, findings: Findings) -> dict[Key, Number]:
    return recomputed.expected(table, side_by_side_subjects(findings)) | of_heldout_set()


def of_heldout_set() -> dict[Key, Number]:
    """What the page says of the rows themselves, counted from what it was given."""
    labels = [row.label for row in asked_rows(clustered=False)]
    found, shares = {}, CARD.production_shares or {}
    for label in set(labels):
        about = {"metric": "heldout/label", "label": label}
        found[key("n", **about)] = Number(labels.count(label))
        found[key("value", **about)] = Number(labels.count(label) / NUM_ROWS)
        found[key("production", **about)] = Number(shares.get(label, 0.0))
    apart = sum(abs(labels.count(label) / NUM_ROWS - shares.get(label, 0.0)) for label in set(labels) | set(shares))
    found[key("value", metric="heldout/total_variation")] = Number(apart / 2)
    for name, counts in CONTAMINATION["against"].items():  # type: ignore[attr-defined]
        about = {"metric": "heldout/contamination", "against": name}
        parts = {"n": "num_protected", "near": "near", "equal": "equal", "removed": "removed"}
        found |= {key(part, **about): Number(counts[field]) for part, field in parts.items()}
        found |= {key(f"{size}-gram", **about): Number(count) for size, count in counts["ngrams"].items()}
    return found


def is_share(shown: Shown) -> bool:
    about = dict(shown.key)
    metric, part = about.get("metric", ""), about["part"]
    if part in COUNTED or metric in recomputed.SCORES or metric.startswith("cost/"):
        return False
    name = metric.partition("/")[2].removesuffix("_vs_base")
    if metric in ("red_team/won", "heldout/contamination", "heldout/total_variation"):
        return False
    return name not in recomputed.COUNTS and not name.startswith("num_out_of_form") and name != "num_judged"


def test_every_number_is_what_the_table_says(numbers: Numbers, expected: dict[Key, Number]) -> None:
    assert len(numbers.found) > 900
    unknown = {shown.key for shown in numbers.found} - expected.keys()
    assert not unknown, f"numbers that nothing checks: {sorted(unknown)[:5]}"
    wrong = []
    for shown in numbers.found:
        wanted = expected[shown.key]
        if shown.text == "< 0.001":
            fine = wanted.value < 0.001 + wanted.tolerance
        else:
            value, half = shown.number(is_share(shown))
            assert half == pytest.approx(0.0005) or not is_share(shown), f"{shown.text} is told too coarsely"
            fine = abs(value - wanted.value) <= half * 1.0001 + wanted.tolerance
        if not fine:
            wrong.append(f"{shown.text} is {wanted}: {dict(shown.key)}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(numbers.found)}", *wrong[:40]])


def test_every_number_of_the_table_is_on_the_page(numbers: Numbers, expected: dict[Key, Number]) -> None:
    """Confidences alone are those of the rows that are shown."""
    missing = {name for name in expected.keys() - {shown.key for shown in numbers.found} if "metric" in dict(name)}
    assert not missing, f"{len(missing)} numbers aren't shown: {sorted(missing)[:5]}"


def test_no_cell_holds_a_number_without_attributes(numbers: Numbers) -> None:
    assert numbers.unmarked == []


def test_the_table_holds_all_that_the_findings_rest_on(tmp_path: Path, measured: Findings) -> None:
    records, setup = made()
    write(tmp_path / "answers.parquet", records, {"setup": setup.as_json()})
    read = load(tmp_path / "answers.parquet")
    assert read.records == records
    assert read.setup == setup
    assert list(read.setup.subjects) == list(setup.subjects)
    assert read == measured


def test_rows_of_a_group_count_as_fewer(measured: Findings) -> None:
    """A group's rows are mostly right or wrong together, so the same share is known less well."""
    together = find(*made(clustered=True))
    for subject in measured.setup.subjects:
        of_rows, of_groups = (one.value(subject, "correctness/accuracy") for one in (measured, together))
        assert of_rows is not None
        assert of_groups is not None
        assert spread(of_groups) > 1.15 * spread(of_rows), subject


def spread(measure: Measure) -> float:
    """The interval's width, in standard errors of a share of so many independent rows."""
    assert measure.low is not None
    assert measure.high is not None
    return (measure.high - measure.low) / (measure.value * (1 - measure.value) / measure.num_rows) ** 0.5


def test_errors_are_counted_apart_and_in_no_other_number() -> None:
    records, setup = made()
    failing = {f"r{place:03}" for place in range(0, NUM_ROWS, 9)}
    hit = [r for r in records if r.suite == HELDOUT and r.row_id in failing and r.error is None]
    failed = [replace(r, answer=None, parsed=None, correct=None, error="timeout") if r in hit else r for r in records]
    with_errors, without = find(failed, setup), find([r for r in records if r not in hit], setup)
    counts = {"correctness/num_rows", "correctness/num_in_scope", "correctness/num_errors"}
    for subject, measures in with_errors.measures.items():
        assert [m for m in measures if m.key not in counts] == [
            m for m in without.measures[subject] if m.key not in counts
        ]
        found = {m.name: m.value for m in measures if m.key in counts}
        number = sum(r.subject == subject and r.suite == HELDOUT and r.error is not None for r in failed)
        assert number >= len(failing)
        assert found == {"num_rows": NUM_ROWS, "num_in_scope": NUM_ROWS - NUM_OUTSIDE, "num_errors": number}
    assert with_errors.comparisons == without.comparisons
    assert with_errors.slices == without.slices
    assert with_errors.reliability == without.reliability


def test_validation_rows_count_for_nothing(measured: Findings) -> None:
    others = [r for r in measured.records if r.suite != VALIDATION]
    assert len(others) < len(measured.records)
    assert find(others, measured.setup).measures == measured.measures


def test_a_subject_without_confidence_has_no_calibration(measured: Findings) -> None:
    assert set(measured.reliability) == {"base", "adapter"}
    assert not [m for m in measured.measures["champion"] if m.suite == "calibration"]
    assert measured.value("adapter", "calibration/ece") is not None


def test_every_metric_is_defined(measured: Findings) -> None:
    known = definitions(measured)
    for subject, measures in measured.measures.items():
        for measure in measures:
            if measure.suite != HARNESS:
                assert [k for k in known if measure.key == k or measure.key.startswith(f"{k}_")], (subject, measure.key)
    named = {m.key for measures in measured.measures.values() for m in measures}
    alone = find([r for r in measured.records if r.suite == LATENCY], measured.setup)
    assert not [k for k in definitions(alone) if k.startswith(("refusal/", "red_team/", "judge/", "calibration/"))]
    assert "cost/latency_p50" in named


def test_the_metrics_for_mlflow_are_the_measures_and_the_differences(measured: Findings) -> None:
    metrics = measured.metrics("adapter")
    assert metrics["eval/correctness/accuracy"] == value(measured, "adapter", "correctness/accuracy")
    comparison = measured.comparisons["champion"]["correctness/accuracy"]
    assert metrics["eval/correctness/accuracy_vs_champion"] == comparison.difference.value
    assert metrics["eval/correctness/accuracy_vs_champion_low"] == comparison.difference.low
    assert metrics["eval/correctness/accuracy_vs_champion_p"] == comparison.p
    assert measured.slices.worst is not None
    assert metrics["eval/slices/worst_slice_accuracy"] == measured.slices.worst.accuracy.value
    assert not [name for name in measured.metrics("base") if "_vs_" in name or "slices" in name]


def value(findings: Findings, subject: str, key: str) -> float:
    found = findings.value(subject, key)
    assert found is not None
    return found.value
