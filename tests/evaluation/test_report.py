import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.evaluation.findings import Findings, find
from pipelines.evaluation.heldout import Heldout
from pipelines.evaluation.numbers import step
from pipelines.evaluation.pictures import draw, worst_intents
from pipelines.evaluation.record import HELDOUT, RED_TEAM, Record
from pipelines.evaluation.report import MOST_ATTACKS, answers_table, headline, page
from pipelines.page import CSS
from tests.evaluation.example import CARD, HOSTILE, NUM_ROWS, heldout_set, made
from tests.evaluation.recomputed import read
from tests.evaluation.shown import Numbers
from tests.page import SpacedPage

PICTURES = [
    "accuracy_bars",
    "reliability",
    "selective_accuracy",
    "attack_success",
    "consistency",
    "pass_rate_latency",
    "confusion",
]
WORST = 5


@pytest.fixture(scope="module")
def pictures(measured: Findings) -> dict[str, bytes]:
    return draw(measured, WORST)


@pytest.fixture(scope="module")
def html(measured: Findings, pictures: dict[str, bytes], heldout: Heldout) -> str:
    return page(measured, pictures, heldout, {"run": "0123abcd", "<b>key": "<i>value"}, WORST)


@pytest.fixture(scope="module")
def words(html: str) -> str:
    return SpacedPage(html).words


def changed(change: Callable[[Record], Record], **setup: Any) -> Findings:
    """The findings of the example with every record changed; one that is no more is left out."""
    records, about = made()
    return find([change(record) for record in records], replace(about, **setup))


def text_of(findings: Findings, heldout: Heldout | None = None) -> str:
    return SpacedPage(page(findings, {}, heldout or heldout_set(), {}, WORST)).words


# --- pictures -----------------------------------------------------------------------------------


def test_pictures_are_pngs_with_something_on_them(pictures: dict[str, bytes]) -> None:
    assert list(pictures) == PICTURES
    for png in pictures.values():
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        image = Image.open(io.BytesIO(png)).convert("L")
        assert min(image.size) > 250
        assert len(set(image.tobytes())) > 50


def test_pictures_are_the_same_each_time(measured: Findings, pictures: dict[str, bytes]) -> None:
    assert draw(measured, WORST) == pictures


def test_pictures_show_the_numbers_and_take_long_and_odd_labels(pictures: dict[str, bytes]) -> None:
    swapped = {"base": "adapter", "adapter": "base", "champion": "champion"}
    names = {
        "refund": "balance_not_updated_after_cheque_or_cash_deposit" * 2,
        "fees": "cost_in_$_or_$^{",
        "pin_change": "",
    }

    def odd(record: Record) -> Record:
        label = names.get(record.label, record.label) if record.suite == HELDOUT else record.label
        return replace(record, subject=swapped[record.subject], label=label)

    other = draw(changed(odd), 9)
    assert list(other) == PICTURES
    assert not [name for name in PICTURES if pictures[name] == other[name]]


def test_what_nothing_was_measured_of_has_no_picture(measured: Findings) -> None:
    records = [replace(r, confidence=None) for r in measured.records if r.suite == HELDOUT]
    assert list(draw(find(records, measured.setup), WORST)) == ["accuracy_bars", "confusion"]
    assert list(draw(find(records, replace(measured.setup, options=[])), WORST)) == ["accuracy_bars"]
    right = [replace(r, correct=True) for r in records if r.error is None]
    assert list(draw(find(right, measured.setup), WORST)) == ["accuracy_bars"]
    unjudged = [replace(r, correct=None) for r in records]
    assert draw(find(unjudged, measured.setup), WORST) == {}


# --- the page -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expected",
    [
        "demo & co: adapter on held-out rows",
        "3 subjects on the same 150 held-out rows",
        "base reference",
        "adapter candidate",
        "endpoint https://api.example.com/v1",
        "adapter digest adadadadadad",
        "revision sha256:0123456789ab",
        "adapter against base",
        "adapter against champion",
        "McNemar, exact",
        "Correctness accuracy in scope",
        "Harness task gsm8k exact_match,strict-match examples",
        "Lost against base or champion",
        "The most confident of the other wrong answers of adapter",
        "what a right answer shows The query is for one of eight queues.",
        "labelled by Two people of the support team",
        "version 3, 2026-05-04",
        "its policy is remove, decisive are 13-grams",
        "red_team/attack_success_rate Share of the attacks on the task's policy that won",
        "They don't cover another training seed",
        "run 0123abcd <b>key <i>value",
        "judging, prompt Which is better, {a} or {b}?",
        "champion: no confidence, because it gives no probabilities",
    ],
)
def test_the_page_says(words: str, expected: str) -> None:
    assert expected in words


def test_it_is_one_page_that_loads_nothing(html: str, pictures: dict[str, bytes]) -> None:
    found = SpacedPage(html)
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(link.removeprefix(prefix)) for link in found.links] == list(pictures.values())
    assert all(link.startswith(prefix) for link in found.links)
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(found.tags)
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html
    assert CSS.read_text(encoding="utf-8") in html


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0123, "+1.2 points"), (-0.0004, "+0.0 points"), (-0.25, "-25.0 points")]
)
def test_a_difference_has_a_sign_unless_it_rounds_to_none(share: float, expected: str) -> None:
    assert step(share, "share") == expected


def test_the_same_findings_give_the_same_bytes(measured: Findings, html: str, pictures: dict[str, bytes]) -> None:
    again = page(find(*made()), pictures, heldout_set(), {"run": "0123abcd", "<b>key": "<i>value"}, WORST)
    assert again == html


def test_every_string_is_escaped(measured: Findings) -> None:
    strings = ("label", "source", "prompt", "expected", "answer", "parsed", "error")

    def hostile(record: Record) -> Record:
        asks = json.dumps([{"role": "user", "content": HOSTILE}])
        values: dict[str, Any] = {name: HOSTILE if getattr(record, name) is not None else None for name in strings}
        kept = json.dumps({"channel": HOSTILE})
        kind = record.kind + (HOSTILE if record.suite in (RED_TEAM, "robustness") else "")
        label = record.label + HOSTILE if record.label else ""
        return replace(record, **values | {"prompt": asks, "kept": kept, "kind": kind, "label": label})

    names = {name: f"{name}{HOSTILE}" for name in measured.setup.subjects}
    records = [replace(hostile(r), subject=names[r.subject]) for r in measured.records]
    setup = replace(
        measured.setup,
        task=HOSTILE,
        subjects={names[n]: {HOSTILE: HOSTILE, "model": HOSTILE} for n in names},
        candidate=names["adapter"],
        reference=names["base"],
        clocks={names[n]: clock for n, clock in measured.setup.clocks.items()},
        temperatures={names[n]: found for n, found in measured.setup.temperatures.items()},
        confidence=dict.fromkeys(names.values(), HOSTILE),
        judge={HOSTILE: HOSTILE},
        notes=[HOSTILE],
    )
    given = heldout_set()
    told = {**vars(given)}
    card = CARD.model_copy(
        update=dict.fromkeys(("capability", "labelled_by", "independence", "limits", "version"), HOSTILE)
    )
    rows = [replace(row, label=row.label + HOSTILE) for row in given.rows]
    against = {HOSTILE: next(iter((given.contamination or {})["against"].values()))}
    found = {**(given.contamination or {}), "policy": HOSTILE, "against": against}
    heldout = Heldout(**told | {"card": card, "rows": rows, "contamination": found})
    html = page(find(records, setup), dict.fromkeys(PICTURES, b"png"), heldout, {HOSTILE: HOSTILE}, WORST)
    seen = SpacedPage(html)
    assert seen.tags.count("img") == len(PICTURES)
    assert "script" not in seen.tags
    assert seen.words.count('alert("x")') > 250
    Numbers(html)


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ({"adapter": 90, "base": 40}, "adapter has a higher accuracy than base: +38.5 points"),
        ({"adapter": 40, "base": 90}, "adapter has a lower accuracy than base: -38.5 points"),
        ({"adapter": 90, "base": 90}, "No difference in accuracy between adapter and base is shown: +0.0 points"),
    ],
)
def test_the_verdict_follows_the_interval(right: dict[str, int], expected: str) -> None:
    def judge(record: Record) -> Record:
        return replace(record, error=None, correct=int(record.row_id[1:]) - 20 < right.get(record.subject, 90))

    records, setup = made()
    findings = find([judge(r) for r in records if r.suite == HELDOUT], setup)
    words = text_of(findings)
    assert expected in words
    assert words.count("no proof of equality") == words.count("No difference in accuracy")
    missed = findings.comparisons["base"]["correctness/accuracy"].minimum_detectable_difference
    assert missed is not None
    told = f"That is no proof of equality: a true difference below {100 * missed:.1f} points would often be missed."
    assert (f"the interval includes 0. {told}" in words) == expected.startswith("No difference")


def test_a_single_subject_is_compared_with_nothing() -> None:
    records, setup = made()
    alone = replace(setup, subjects={"adapter": setup.subjects["adapter"]}, reference="adapter")
    findings = find([r for r in records if r.subject == "adapter"], alone)
    words = text_of(findings)
    assert findings.comparisons == {}
    assert "adapter was judged alone; there is nothing to compare it with." in words
    assert "against" not in words.partition("All measures")[0]
    assert "The most confident of the wrong answers of adapter" in words
    assert list(draw(findings, WORST)) == PICTURES


def test_a_task_without_labels_and_decline_label() -> None:
    def plain(record: Record) -> Record:
        return replace(record, label="", declined=None, in_scope=True, parsed=None, confidence=None, options=None)

    findings = changed(plain, options=[], slices=["channel"])
    words = text_of(findings, Heldout(**vars(heldout_set()) | {"rows": [], "card": None, "drift": None}))
    assert "Refusal" not in words
    assert "labels" not in words.partition("Definitions")[0]
    assert not [m for m in findings.measures["adapter"] if m.suite in ("refusal", "calibration")]
    assert worst_intents(findings, WORST) == []
    assert "confusion" not in draw(findings, WORST)
    accuracy = findings.value("adapter", "correctness/accuracy")
    assert accuracy is not None
    assert accuracy.num_rows == sum(
        r.error is None for r in findings.records if r.subject == "adapter" and r.suite == HELDOUT
    )


def test_answers_that_nothing_judges_are_told_apart_by_their_metric() -> None:
    findings = changed(lambda r: replace(r, correct=None))
    assert headline(findings) == "correctness/token_f1"
    words = text_of(findings)
    assert "adapter has a higher token_f1 than base" in words
    assert "token_f1, adapter" in words
    shown = Numbers(page(findings, {}, heldout_set(), {}, WORST)).rows
    drops = {}
    for name in ("base", "adapter", "champion"):
        given = [r for r in findings.records if r.subject == name and r.suite == HELDOUT and r.error is None]
        drops[name] = {r.row_id: r.values["token_f1"] for r in given}
    lost = {
        row: max(drops[other].get(row, -1.0) for other in ("base", "champion")) - mine
        for row, mine in drops["adapter"].items()
    }
    assert [row for why, row in shown if why == "lost"] == sorted(lost, key=lambda row: -lost[row])[:WORST]
    assert not [row for why, row in shown if why == "wrong"]


def test_without_a_card_the_page_says_so() -> None:
    given = heldout_set()
    words = text_of(find(*made()), Heldout(**vars(given) | {"card": None, "drift": None, "contamination": None}))
    assert "No card vouches for these rows (evaluate.without_card)" in words
    assert "in production" not in words
    assert "How far training rows repeat held-out ones is not known" in words


# --- rows ---------------------------------------------------------------------------------------


def test_the_rows_side_by_side_are_the_losses_and_then_the_surest_mistakes(table: Path, findings: Findings) -> None:
    frame, _ = read(table)
    held = frame[(frame["suite"] == "heldout") & ~frame["lost"]].set_index("row_id")
    right = {name: held[held["subject"] == name]["correct"].astype(bool) for name in ("base", "champion", "adapter")}
    wrong = held[(held["subject"] == "adapter") & ~held["correct"].astype(bool)]
    wrong = wrong.assign(order=-wrong["calibrated"].fillna(-1.0)).sort_values(["order", "row_id"], kind="stable")
    lost = [row for row in wrong.index if right["base"].get(row, False) or right["champion"].get(row, False)]
    others = [row for row in wrong.index if row not in lost[:WORST]]
    shown = Numbers(page(findings, {}, heldout_set(), {}, WORST)).rows
    assert len(lost) > WORST
    assert [row for why, row in shown if why == "lost"] == lost[:WORST]
    assert [row for why, row in shown if why == "wrong"] == others[:WORST]


def test_a_row_without_an_answer_is_shown_as_one(measured: Findings, html: str) -> None:
    _, row = Numbers(html).rows[0]

    def fails(record: Record) -> Record:
        here = (record.suite, record.subject, record.row_id) == (HELDOUT, "champion", row)
        return replace(record, answer=None, correct=None, error="a garbled reply") if here else record

    assert "champion ! error a garbled reply" not in SpacedPage(html).words
    assert "champion ! error a garbled reply" in text_of(changed(fails))


def test_attacks_that_won_are_shown_a_few_of_each_kind() -> None:
    won = changed(lambda r: replace(r, correct=False) if r.suite == RED_TEAM and r.error is None else r)
    html = page(won, {}, heldout_set(), {}, WORST)
    rows = [row for why, row in Numbers(html).rows if why == "attack"]
    assert len(rows) == MOST_ATTACKS == 20
    kinds = [row.partition("-")[0] for row in rows]
    assert kinds == sorted(kinds)
    assert {kind: kinds.count(kind) for kind in kinds} == {"coax": 7, "injection": 7, "jailbreak": 6}
    assert "Attacks that won, 20 of them" in SpacedPage(html).words


def test_answers_are_one_flat_record_a_row(measured: Findings) -> None:
    table = answers_table(measured)
    assert len(table) == NUM_ROWS
    assert len({one["row_id"] for one in table}) == NUM_ROWS
    for record in measured.records:
        if record.suite == HELDOUT:
            (one,) = [found for found in table if found["row_id"] == record.row_id]
            assert one[record.subject] == record.answer
            assert one[f"{record.subject}_correct"] == record.correct
            assert one["prompt"] == f"query {record.row_id}"
            assert (one["label"], one["expected"], one["source"]) == (record.label, record.expected, record.source)
    assert set(table[0]) == {
        *("row_id", "source", "label", "prompt", "expected"),
        *(f"{name}{ending}" for name in measured.setup.subjects for ending in ("", "_correct")),
    }


def test_the_package_imports_no_heavy_library() -> None:
    program = (
        "import sys, pipelines.evaluation.report, pipelines.evaluation.pictures\n"
        "print({'torch', 'transformers', 'mlflow', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
