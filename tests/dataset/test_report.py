import base64
import copy
import io
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from pipelines.dataset.pictures import Lengths
from pipelines.dataset.report import html_report, notices
from tests.page import SpacedPage

HOSTILE = '<script>alert("x")</script><img src="https://example.org/x.png">'
EXAMPLES = "<h3>train, row 1</h3><pre>user: hi <mark>card_arrival</mark></pre>"
SUMMARY: dict[str, Any] = {
    "task": "demo & co",
    "seed": 42,
    "sources": {
        "shop": {
            "place": "data/shop_*.csv",
            "kind": "path",
            "format": "csv",
            "records": "columns",
            "recognised": False,
            "sha256": "ab" * 32,
            "revision": None,
            "license": "CC-BY-4.0",
            "split": "train",
            "num_read": 1_234,
            "num_defective": 4,
            "num_left_out": 30,
            "num_kept": 1_200,
        },
        "hub": {
            "place": "owner/name",
            "kind": "hub",
            "format": None,
            "records": "messages",
            "recognised": True,
            "sha256": None,
            "revision": "0123456789abcdef0123",
            "license": "CC0-1.0",
            "split": "heldout",
            "num_read": 100,
            "num_defective": 0,
            "num_left_out": 0,
            "num_kept": 100,
        },
    },
    "funnel": [
        {"step": "records read", "rows": 1_334},
        {"step": "defective records", "removed": 4, "rows": 1_330},
        {"step": "left out", "removed": 30, "rows": 1_300},
        {"step": "exact duplicates", "removed": 100, "rows": 1_200},
    ],
    "splits": {
        "train": {"num_rows": 1_000, "digest": "11" * 32, "num_out_of_scope": 7, "labels": {"a_b": 993, "oos": 7}},
        "validation": {"num_rows": 100, "digest": "22" * 32, "num_out_of_scope": 0, "labels": {"a_b": 100}},
        "heldout": {"num_rows": 100, "digest": "33" * 32, "num_out_of_scope": 50, "labels": {"a_b": 50, "oos": 50}},
    },
    "duplicates": {
        "exact": 100,
        "near": 3,
        "threshold": 0.8,
        "heldout_exact": 2,
        "conflicts": 0,
        "conflict_examples": [],
    },
    "redacted": {"EMAIL_ADDRESS": 3},
    "languages": {"de": 5},
    "contamination": {
        "policy": "remove",
        "decisive": 13,
        "threshold": 0.7,
        "against": {
            "heldout": {
                "num_protected": 100,
                "ngrams": {"8": 55, "13": 6},
                "equal": 17,
                "near": 19,
                "removed": 36,
                "examples": [
                    {
                        "id": "r77",
                        "source": "data/shop_1.csv:9",
                        "found": "near-duplicate",
                        "similarity": 0.912,
                        "text": "where is my card",
                        "protected": "where's my card",
                    },
                    {
                        "id": "r78",
                        "source": "data/shop_1.csv:10",
                        "found": "13-gram",
                        "similarity": None,
                        "match": "the thirteen words",
                        "text": "a long text",
                        "protected": "another long text",
                    },
                ],
            },
            "gsm8k": {"num_protected": 1_319, "ngrams": {}, "equal": 0, "near": 0, "removed": 0, "examples": []},
        },
    },
    "heldout": {
        "method": "matched",
        "fixed": None,
        "target_shares": {"a_b": 0.5, "oos": 0.5},
        "achieved_shares": {"a_b": 0.48, "oos": 0.52},
    },
    "quarantine": {"num_records": 0, "reasons": {}},
}
LENGTHS = Lengths(
    "tokens",
    64,
    {"train": list(range(1, 101)), "validation": [], "heldout": [10]},
    {"train": 1_000, "validation": 100, "heldout": 100},
)
REMOVED: list[dict[str, Any]] = [
    {"id": "r1", "source": "data/shop_1.csv:3", "reason": "exact duplicate", "of": "r0 (data/shop_1.csv:2)"},
    {"id": "r2", "source": "d.csv:4", "reason": "near-duplicate", "of": "r0", "similarity": 0.87, "text": "hello you"},
]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The summary with one dotted key set."""
    summary = copy.deepcopy(SUMMARY)
    *parents, last = path.split(".")
    block = summary
    for parent in parents:
        block = block[parent]
    block[last] = value
    return summary


@pytest.fixture(scope="module")
def html() -> str:
    return html_report(SUMMARY, LENGTHS, EXAMPLES, REMOVED)


@pytest.fixture(scope="module")
def words(html: str) -> str:
    return SpacedPage(html).words


def test_the_same_input_gives_the_same_bytes(html: str) -> None:
    assert html_report(copy.deepcopy(SUMMARY), LENGTHS, EXAMPLES, list(REMOVED)) == html


@pytest.mark.parametrize(
    "expected",
    [
        "Rows of demo & co",
        "2 sources with seed 42",
        "train 1,000 rows, 7 of them out of scope",
        "Not kept 134 of 1,334 records read",
        "records read - 1,334 defective records 4 1,330 left out 30 1,300 exact duplicates 100 1,200",
        "shop data/shop_*.csv path, csv columns given abababababab sha256 CC-BY-4.0 train 1,234 4 30 1,200",
        "hub owner/name hub messages recognised 0123456789ab revision CC0-1.0 heldout 100 0 0 100",
        "label train validation heldout all 1,000 100 100 a_b 993 100 50 oos 7 0 50",
        "n counted of rows shortest 5 % median 95 % 99 % longest over 64",
        "train 100 1,000 1 5 50 95 99 100 36 27.3 % to 45.8 %",
        "validation 0 100 - - - - - - -",
        "its rows 13-gram, decisive 8-gram near-duplicate equal removed heldout 100 6 55 19 17 36",
        "gsm8k 1,319 0 0 0 0 0",
        "the policy is remove. These rows were removed.",
        "r77 data/shop_1.csv:9 near-duplicate similarity 0.91 where is my card where's my card",
        "r78 data/shop_1.csv:10 13-gram “the thirteen words” a long text another long text",
        "Exact 100 rows that repeat another",
        "In held-out 2",
        "EMAIL_ADDRESS 3 Only what has a pattern is found. Names, postal addresses",
        "language of the prompt rows left out de 5",
        "a_b 50.0 % 48.0 % -2.0 points",
        "r1 data/shop_1.csv:3 - exact duplicate r0 (data/shop_1.csv:2)",
        "r2 d.csv:4 hello you near-duplicate similarity 0.87 r0",
        "train, row 1",
        f"train.jsonl, sha256 {'11' * 32}",
        f"shop, sha256 {'ab' * 32}",
        "hub, revision 0123456789abcdef0123",
    ],
)
def test_the_page_says(words: str, expected: str) -> None:
    assert expected in words


def test_it_is_one_page_that_loads_nothing(html: str) -> None:
    page = SpacedPage(html)
    prefix = "data:image/png;base64,"
    assert len(page.links) == 3
    for link in page.links:
        assert link.startswith(prefix)
        assert Image.open(io.BytesIO(base64.b64decode(link.removeprefix(prefix)))).format == "PNG"
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(page.tags)
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_every_string_is_escaped_but_the_examples() -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: hostile(item) for key, item in value.items()}
        if isinstance(value, list):
            return [hostile(item) for item in value]
        return HOSTILE if isinstance(value, str) else value

    summary = hostile(SUMMARY)
    summary["contamination"]["policy"] = "record"
    summary["languages"] = summary["redacted"] = {HOSTILE: 1}
    summary["quarantine"] = {"num_records": 1, "reasons": {HOSTILE: 1}}
    summary["sources"] = {HOSTILE: summary["sources"]["shop"]}
    summary["duplicates"]["conflict_examples"] = [{"prompt": HOSTILE, "answers": [HOSTILE], "sources": [HOSTILE]}]
    page = SpacedPage(html_report(summary, LENGTHS, EXAMPLES, hostile(REMOVED)))
    assert page.tags.count("img") == 3
    assert "script" not in page.tags
    assert page.words.count('alert("x")') > 25
    assert page.tags.count("mark") == 1


def test_with_nothing_but_a_task_there_is_a_page() -> None:
    words = SpacedPage(html_report({"task": "bare", "seed": 0}, Lengths("characters", None, {}, {}), "", [])).words
    assert "Rows of bare" in words
    assert "The rows have no labels." in words
    for section in ("Sources", "Contamination", "Duplicates", "Personal data", "Held-out rows", "Removed rows"):
        assert section not in words


@pytest.mark.parametrize("name", ["funnel", "duplicates", "contamination"])
def test_a_missing_part_is_a_missing_section(name: str, html: str) -> None:
    summary = {key: value for key, value in SUMMARY.items() if key != name}
    assert SpacedPage(html_report(summary, LENGTHS, "", [])).tags.count("h2") == SpacedPage(html).tags.count("h2") - 3


def test_rows_without_labels_have_no_picture_of_them() -> None:
    splits = {split: about | {"labels": {"": about["num_rows"]}} for split, about in SUMMARY["splits"].items()}
    page = SpacedPage(html_report(changed("splits", splits), LENGTHS, "", []))
    assert "The rows have no labels." in page.words
    assert page.tags.count("img") == 2


def test_labels_that_the_summary_leaves_out_are_not_called_absent() -> None:
    splits = {split: about | {"labels": {}, "num_labels": 7_473} for split, about in SUMMARY["splits"].items()}
    words = SpacedPage(html_report(changed("splits", splits), LENGTHS, "", [])).words
    assert "Up to 7,473 labels in a split" in words
    assert "no labels" not in words


def test_what_was_not_looked_for_is_not_called_absent() -> None:
    summary = SUMMARY | {"redacted": {}, "languages": {}}
    asked: dict[str, Any] = {"redact": {"kinds": []}, "filters": {"languages": None}}
    words = SpacedPage(html_report(summary | {"config": asked}, LENGTHS, "", [])).words
    assert "Nothing was looked for: prepare.redact.kinds is empty." in words
    assert "Not checked: prepare.filters.languages is not set." in words
    asked = {"redact": {"kinds": ["URL"]}, "filters": {"languages": ["en"]}}
    words = SpacedPage(html_report(summary | {"config": asked}, LENGTHS, "", [])).words
    assert "Nothing was found." in words
    assert "Languages left out None." in words


def test_mixture_and_pass_rates_are_shown_where_there_are_any() -> None:
    mixture = {"shop": {"weight": 0.75, "num_rows": 3_000, "share": 0.75}}
    rates = {"samples": 4, "low": 0.25, "high": 0.75, "rows_by_passed": {"0": 1_100, "4": 7}}
    words = SpacedPage(html_report(SUMMARY | {"mixture": mixture, "pass_rate": rates}, LENGTHS, "", [])).words
    assert "source weight rows share shop 0.75 3,000 75.0 %" in words
    assert "between 25.0 % and 75.0 % of 4 samples right" in words
    assert "samples right rows before the filter 0 1,100 4 7" in words


def test_many_labels_and_removed_rows_are_cut_and_the_page_says_so() -> None:
    summary = changed("splits.train.labels", {f"label_{n}": 1 for n in range(1_000)})
    words = SpacedPage(html_report(summary, LENGTHS, "", [REMOVED[0]] * 75)).words
    assert "Rows of the 200 most frequent of 1,002 labels" in words
    assert "The 20 most frequent of 1002 labels" in words
    assert words.count("r0 (data/shop_1.csv:2)") == 30
    assert "45 more are not shown" in words


def test_nothing_stands_out_where_all_is_well(words: str) -> None:
    assert notices(SUMMARY) == []
    assert "Nothing stands out" in words


@pytest.mark.parametrize(
    ("path", "value", "notice"),
    [
        ("splits.validation.num_rows", 0, "No row is left for validation."),
        ("splits.train.num_rows", 999, "The last step leaves 1,200 rows, the splits hold 1,199 of them"),
        ("contamination.policy", "record", "have text of heldout and are still in"),
        ("duplicates.conflicts", 2, "Prompts that have rows with different answers: 2"),
        ("quarantine.num_records", 4, "Defective records put aside in quarantine.jsonl: 4."),
        ("sources.hub.license", "unknown", "The licence is unknown of hub."),
    ],
)
def test_what_needs_a_look_is_noticed(path: str, value: Any, notice: str) -> None:
    assert sum(notice in found for found in notices(changed(path, value))) == 1


def test_what_needs_a_look_comes_first() -> None:
    words = SpacedPage(html_report(changed("duplicates.conflicts", 2), LENGTHS, "", [])).words
    assert words.index("Prompts that have rows with different answers: 2") < words.index("From records to rows")
    assert "Nothing stands out" not in words


@pytest.mark.parametrize("found", [{"ngrams": {"13": 1}}, {"near": 1}, {"equal": 1}, {"ngrams": {"8": 1}}])
def test_contamination_that_is_only_recorded_needs_a_look_where_it_is_decisive(found: dict[str, Any]) -> None:
    about = {"num_protected": 5, "ngrams": {}, "equal": 0, "near": 0, "removed": 0, "examples": []} | found
    contamination = SUMMARY["contamination"] | {"policy": "record", "against": {"bench": about}}
    assert bool(notices(changed("contamination", contamination))) == (found != {"ngrams": {"8": 1}})


def test_an_unknown_licence_is_marked() -> None:
    html = html_report(changed("sources.hub.license", "unknown"), LENGTHS, "", [])
    assert html.count('<span class="unknown">unknown</span>') == 1


def test_copied_heldout_rows_are_not_missed_in_the_funnel() -> None:
    summary = changed("heldout", {"method": "fixed", "fixed": "ab12"})
    summary["funnel"][-1] = {"step": "held out before", "removed": 200, "rows": 1_100}
    assert notices(summary) == []
    assert "They are those of the rows ab12" in SpacedPage(html_report(summary, LENGTHS, "", [])).words


def test_importing_the_report_loads_no_heavy_library() -> None:
    program = (
        "import sys, pipelines.dataset.report\n"
        "print({'torch', 'transformers', 'mlflow', 'matplotlib', 'presidio_analyzer'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
