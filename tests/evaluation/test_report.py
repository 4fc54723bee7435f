import base64
import io
import re
import subprocess
import sys

import pytest
from PIL import Image

from pipelines.dataset.row import Row
from pipelines.evaluation import compare, score
from pipelines.evaluation.answer import Answer
from pipelines.evaluation.evidence import Evidence, gather
from pipelines.evaluation.pictures import draw
from pipelines.evaluation.report import html_report
from tests.page import Page

DECLINE = "out_of_scope"
HOSTILE = '<script>alert("x")</script><img src="https://example.org/x.png">'
Labelled = tuple[list[Row], dict[str, list[Answer]]]


@pytest.fixture(scope="module")
def evidence(labelled: Labelled) -> Evidence:
    rows, answers = labelled
    adapter = list(answers["adapter"])
    adapter[3] = Answer("r3", HOSTILE, False, None, 20, False)
    return gather(rows, answers | {"adapter": adapter}, DECLINE, num_worst=3, resamples=500, seed=0)


@pytest.fixture(scope="module")
def pictures(evidence: Evidence) -> dict[str, bytes]:
    return draw(evidence)


@pytest.fixture(scope="module")
def html(evidence: Evidence, pictures: dict[str, bytes]) -> str:
    return html_report(evidence, pictures, "demo & co", {"run_id": "0123abcd", "<b>key": "<i>value"})


def test_pictures_are_pngs_with_something_on_them(pictures: dict[str, bytes]) -> None:
    assert set(pictures) == {"accuracy_bars", "confusion"}
    for png in pictures.values():
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        image = Image.open(io.BytesIO(png)).convert("L")
        assert min(image.size) > 250
        assert len(set(image.tobytes())) > 50


def test_pictures_show_the_numbers_and_are_the_same_each_time(
    labelled: Labelled, evidence: Evidence, pictures: dict[str, bytes]
) -> None:
    rows, answers = labelled
    assert draw(evidence) == pictures
    other = draw(gather(rows, answers | {"adapter": answers["base"]}, DECLINE, 3, 500, 0))
    assert all(pictures[name] != other[name] for name in pictures)


def test_long_and_odd_labels_are_drawn(labelled: Labelled) -> None:
    names = {"a": "balance_not_updated_after_cheque_or_cash_deposit" * 2, "b": "cost_in_$_or_$^{", "c": ""}
    rows, answers = labelled
    renamed = [Row(**row.as_dict() | {"label": names.get(row.label, row.label)}) for row in rows]
    assert len(draw(gather(renamed, answers, DECLINE, 3, 500, 0))) == 2


def test_without_a_wrong_answer_there_is_no_confusion(labelled: Labelled) -> None:
    rows, answers = labelled
    kept = [0, 1, 2]
    chosen = {subject: [given[i] for i in kept] for subject, given in answers.items()}
    faultless = gather([rows[i] for i in kept], chosen, DECLINE, 3, 500, 0)
    pictures = draw(faultless)
    assert set(pictures) == {"accuracy_bars"}
    page = Page(html_report(faultless, pictures, "demo", {}))
    assert page.tags.count("img") == 1
    assert "Wrong answers of the adapter\nNone." in page.words


def test_the_page_shows_the_headline_numbers(html: str, evidence: Evidence) -> None:
    words = re.sub(r"\s+", " ", Page(html).words)
    low, high = evidence.comparison.difference.low, evidence.comparison.difference.high
    assert "Accuracy, base25.0 %" in words
    assert "Accuracy, adapter75.0 %" in words
    assert f"Difference+50.0 points{100 * low:.1f} to {100 * high:.1f}; 5 rows gained, 1 lost" in words
    assert f"McNemar p{2 * (1 + 6) / 2**6:.3f}" in words
    assert f"{100 * evidence.comparison.minimum_detectable_difference:.1f} points" in words
    assert re.search(r"decline_rate ?2 out of scope ?50\.0 % .*? 100\.0 %", words)
    assert re.search(r"over_refusal_rate ?8 in scope ?12\.5 % .*? 0\.0 %", words)


def test_every_intent_definition_and_provenance_entry_is_on_the_page(html: str, evidence: Evidence) -> None:
    words = Page(html).words
    for intent in evidence.intents:
        assert re.search(rf"{intent.label}\s*{intent.num_rows}", words)
    for metric, definition in (score.DEFINITIONS | compare.DEFINITIONS).items():
        assert f"{metric}\n{definition}" in words or f"{metric}{definition}" in words
    assert "run_id0123abcd" in words
    assert "<b>key<i>value" in words


def test_strings_are_escaped(html: str) -> None:
    page = Page(html)
    assert HOSTILE in page.words
    assert "demo & co" in page.words
    assert not {"script", "b>key", "i", "iframe", "object", "embed", "link"} & set(page.tags)
    assert page.tags.count("img") == 2


def test_nothing_is_loaded_from_outside(html: str, pictures: dict[str, bytes]) -> None:
    page = Page(html)
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(link.removeprefix(prefix)) for link in page.links] == list(pictures.values())
    assert all(link.startswith(prefix) for link in page.links)
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    ("base", "adapter", "verdict"),
    [(0, 7, "is more accurate"), (7, 0, "is less accurate"), (4, 4, "no proof of equality")],
)
def test_the_verdict_follows_the_interval(
    labelled: Labelled, pictures: dict[str, bytes], base: int, adapter: int, verdict: str
) -> None:
    rows = labelled[0][:8]
    answers = {
        subject: [Answer(row.id, "", position < right, None, 0, True) for position, row in enumerate(rows)]
        for subject, right in (("base", base), ("adapter", adapter))
    }
    evidence = gather(rows, answers, DECLINE, 1, 500, 0)
    assert verdict in html_report(evidence, pictures, "demo", {})


def test_the_package_imports_no_heavy_library() -> None:
    program = (
        "import sys, pipelines.evaluation.report, pipelines.evaluation.pictures\n"
        "print({'torch', 'transformers', 'mlflow', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
