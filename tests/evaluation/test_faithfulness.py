"""Sentences, the fallback by words, and the metrics of grounded answers, each by hand."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipelines.config.block import EndpointFields
from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Message
from pipelines.errors import UserError
from pipelines.evaluation import faithfulness
from pipelines.evaluation.faithfulness import (
    DEFINITIONS,
    METHODS,
    by_judge,
    by_overlap,
    measure,
    pairs_needed,
    yes_or_no,
)
from pipelines.evaluation.judge import check_template
from pipelines.evaluation.overlap import overlap
from pipelines.evaluation.sentences import Sentence, sentences
from pipelines.subjects.endpoint import Endpoint
from pipelines.subjects.subject import Reply
from tests.subjects import serving
from tests.subjects.serving import Faulty

TEMPLATE = "P={passage}\nC={claim}"


# --- sentences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs $3.50. It works.", ["It costs $3.50.", "It works."]),
        ("Dr. Smith met J. R. Brown. They spoke.", ["Dr. Smith met J. R. Brown.", "They spoke."]),
        ("Use a tool, e.g. Python, vs. Perl. Done.", ["Use a tool, e.g. Python, vs. Perl.", "Done."]),
        ("See No. 5 and Fig. 2. No. That is all.", ["See No. 5 and Fig. 2.", "No.", "That is all."]),
        (
            "On Jan. 5 it closed. It opened in Dec. Then snow.",
            ["On Jan. 5 it closed.", "It opened in Dec.", "Then snow."],
        ),
        ("The U.S. Army has a Ph.D. Programme.", ["The U.S. Army has a Ph.D. Programme."]),
        ("It shuts at 5 p.m. The bar stays.", ["It shuts at 5 p.m.", "The bar stays."]),
        ("Bread, milk, etc. are sold. etc.", ["Bread, milk, etc. are sold. etc."]),
        ("Version 1.2.3 is at example.com. Get it.", ["Version 1.2.3 is at example.com.", "Get it."]),
        ("Well... maybe. Well… Yes!", ["Well... maybe.", "Well…", "Yes!"]),
        ('"Stop!" he said. "Why?" She left.', ['"Stop!" he said.', '"Why?"', "She left."]),
        ("Am I? I am! (Truly.) So. It is I. Who?", ["Am I?", "I am!", "(Truly.)", "So.", "It is I.", "Who?"]),
        ("これは青い。次です。", ["これは青い。", "次です。"]),
        ("- One thing\n2. Another thing.\n\n---\n# Title\n[1]", ["One thing", "Another thing.", "Title"]),
        ("no stop at all", ["no stop at all"]),
        ("", []),
        (" \n . ! ", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert [sentence.text for sentence in sentences(text)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Blue [1]. Red.[2] Green. [3][1] Grey", [("Blue.", (1,)), ("Red.", (2,)), ("Green.", (3, 1)), ("Grey", ())]),
        ("Both [1, 3] and [2;2] hold.", [("Both and hold.", (1, 3, 2))]),
        ("All [2-4] hold, [9\u20138] doesn't.", [("All hold, doesn't.", (2, 3, 4, 9))]),
        ("青い。[2]次。", [("青い。", (2,)), ("次。", ())]),
        ("In [1999] and [a] and x[i].", [("In [1999] and [a] and x[i].", ())]),
    ],
)
def test_citations_stay_with_their_sentence(text: str, expected: list[tuple[str, tuple[int, ...]]]) -> None:
    assert sentences(text) == [Sentence(*pair) for pair in expected]


@pytest.mark.parametrize("text", ["." * 100_000, "x. y " * 40_000, ".[1 1" * 30_000, " " * 200_000, "[1, " * 50_000])
@pytest.mark.timeout(20)
def test_no_text_takes_quadratic_time(text: str) -> None:
    assert len(sentences(text)) <= 1


# --- the fallback -------------------------------------------------------------------------------

PASSAGE = "The basic card costs 1,000 euros a year. It is not insured. Three cards are free, and one is gold."


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("The basic card costs 1000 euros.", True),
        ("The basic card costs 1000.00 euros.", True),
        ("The basic card costs 100 euros.", False),  # a number that the passage lacks
        ("Basic cards cost.", True),  # an s at a word's end doesn't count
        ("3 cards are free.", True),
        ("Four cards are free.", False),
        ("The card isn't insured.", True),
        ("The card is insured.", False),  # the sentence about insurance is negated
        ("The basic card does not cost euros.", False),
        ("The basic card is silver and heavy.", False),  # two of four words
        ("The basic gold card is heavy.", True),  # three of four
        ("It is.", None),
        ("1000.", True),
    ],
)
def test_words_numbers_and_negation(claim: str, expected: bool | None) -> None:
    assert overlap(claim, PASSAGE, 0.6) is expected


@pytest.mark.parametrize(("threshold", "expected"), [(0.6, True), (0.61, False), (1.0, False)])
def test_the_threshold_is_a_share_of_the_words(threshold: float, expected: bool) -> None:
    # basic, card and gold of five
    assert overlap("Basic card, gold, shiny, heavy", PASSAGE, threshold) is expected


def test_one_of_them_is_no_number() -> None:
    assert overlap("One of the cards is gold.", "Cards are gold.", 0.6) is True
    assert overlap("Two of the cards are gold.", "Cards are gold.", 0.6) is False


def test_not_only_denies_nothing() -> None:
    assert overlap("The card is not only gold.", "The card is gold.", 0.6) is True
    assert overlap("The card is not gold.", "The card is gold.", 0.6) is False


def test_versions_and_dates_are_numbers_of_their_own() -> None:
    assert overlap("Version 1.2.3 runs.", "Version 1.2.3 runs.", 0.6) is True
    assert overlap("Version 1.2.4 runs.", "Version 1.2.3 runs.", 0.6) is False
    assert overlap("Room 007 is shut.", "Room 7 is shut.", 0.6) is True


def test_an_empty_passage_supports_nothing() -> None:
    assert overlap("The card is gold.", "", 0.6) is False


# --- support ------------------------------------------------------------------------------------


def test_each_pair_is_asked_once_in_one_call() -> None:
    calls: list[list[str]] = []

    def ask(conversations: list[list[Message]]) -> list[Reply]:
        calls.append([str(messages[0]["content"]) for messages in conversations])
        return [Reply("yes"), Reply("No."), Reply("perhaps"), Reply(None, error="gone")]

    pairs = [("a {claim}", "p"), ("b", "p"), ("c", "p"), ("a {claim}", "p"), ("d", "{passage}")]
    found = by_judge(pairs, TEMPLATE, ask)
    assert calls == [["P=p\nC=a {claim}", "P=p\nC=b", "P=p\nC=c", "P={passage}\nC=d"]]
    assert found.verdicts == {
        ("a {claim}", "p"): True,
        ("b", "p"): False,
        ("c", "p"): None,
        ("d", "{passage}"): None,
    }
    assert (found.method, found.num_out_of_form, found.num_errors) == ("judge", 1, 1)


def test_nothing_needed_is_nothing_asked() -> None:
    assert by_judge([], TEMPLATE, lambda conversations: 1 / 0).verdicts == {}  # type: ignore[arg-type,return-value]


def test_the_fallback_says_that_it_is_one() -> None:
    found = by_overlap([("The card is gold.", "The card is gold."), ("It is.", "x")], 0.6)
    assert found.verdicts == {("The card is gold.", "The card is gold."): True, ("It is.", "x"): None}
    assert found.method == "overlap"
    assert "fallback" in METHODS[found.method]
    assert (found.num_out_of_form, found.num_errors) == (0, 0)


def test_a_wrong_template_is_told() -> None:
    with pytest.raises(UserError, match=r"evaluate\.judge\.claims_prompt: expected \{passage\}, \{claim\}"):
        by_judge([("a", "b")], "{passage} {statement}", lambda conversations: [])


def test_the_shipped_template_is_right() -> None:
    shipped = yaml.safe_load((PROJECT / "conf/evaluate.yaml").read_text(encoding="utf-8"))["judge"]
    check_template(shipped["claims_prompt"], "claims_prompt", faithfulness.PLACEHOLDERS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        (" Yes.\n", True),
        ("**NO**", False),
        ("Answer: no", False),
        ("yes, it does", None),
        ("", None),
        ("true", None),
        ("yes no", None),
    ],
)
def test_yes_or_no_alone_is_read(text: str, value: bool | None) -> None:
    assert yes_or_no(text) is value


# --- metrics ------------------------------------------------------------------------------------

ANSWER = "Red is warm [1]. Blue is cold [2][1]. Green is new [5]. Grey."
GOLD = "Red is warm. Black is deep."
PASSAGES = ["p1", "p2", "p3"]


def table(**true: str) -> dict[tuple[str, str], bool | None]:
    """Every pair: True or unknown where a passage is given for the claim's first word, `?p1` being unknown."""
    found: dict[tuple[str, str], bool | None] = {}
    for claim, passage in pairs_needed(ANSWER, GOLD, PASSAGES):
        told = true.get(claim.split()[0].rstrip("."), "").split()
        found[claim, passage] = None if f"?{passage}" in told else passage in told
    return found


def test_the_pairs_of_a_row_each_once() -> None:
    pairs = pairs_needed(ANSWER, GOLD, ["p1", "p2", "p1"])
    claims = ["Red is warm.", "Blue is cold.", "Green is new.", "Grey.", "Black is deep."]
    assert pairs == [(claim, passage) for claim in claims for passage in ("p1", "p2")]
    assert pairs_needed(ANSWER, None, []) == []


def test_the_metrics_by_hand() -> None:
    found = measure(ANSWER, GOLD, PASSAGES, table(Red="p1 p3", Blue="p2", Black=""))
    assert found == {
        "supported_claim_share": 2 / 4,  # red and blue
        "context_precision": 2 / 3,  # p1 and p3, for red
        "context_precision_ranked": pytest.approx((1 / 1 + 2 / 3) / 2),
        "context_recall": 1 / 2,
        "citation_correctness": 2 / 4,  # [1] for red and [2] for blue; [1] for blue is wrong, [5] isn't there
    }
    assert list(found) == list(DEFINITIONS)


def test_rank_matters_to_the_ranked_precision_alone() -> None:
    late = measure(ANSWER, GOLD, PASSAGES, table(Black="p3"))
    early = measure(ANSWER, GOLD, PASSAGES, table(Black="p1"))
    assert late["context_precision"] == early["context_precision"] == pytest.approx(1 / 3)
    assert late["context_precision_ranked"] == pytest.approx(1 / 3)
    assert early["context_precision_ranked"] == 1.0
    assert measure(ANSWER, GOLD, PASSAGES, table())["context_precision_ranked"] == 0.0


def test_what_is_not_known_counts_for_nothing() -> None:
    # Blue: unknown by p2, not by the others: open. Red: p1 unknown, but p2 supports it.
    found = measure(ANSWER, GOLD, PASSAGES, table(Red="?p1 p2", Blue="?p2", Black="?p3"))
    assert found["supported_claim_share"] == pytest.approx(1 / 3)  # of red, green, grey
    assert found["context_precision"] == 1.0  # p1 and p3 are open
    assert found["context_recall"] == 1.0
    assert found["citation_correctness"] == 0.0  # [1] and [2] of red and blue are open, [1] of blue and [5] are wrong


def test_what_cannot_be_measured_is_left_out() -> None:
    plain = "Red is warm. Grey."
    supported: dict[tuple[str, str], bool | None] = dict.fromkeys(pairs_needed(plain, None, ["p1"]), True)
    assert measure(plain, None, ["p1"], supported) == {"supported_claim_share": 1.0}
    assert measure("", GOLD, [], {}) == {}
    assert measure("Red is warm [0].", None, ["p1"], {("Red is warm.", "p1"): True})["citation_correctness"] == 0.0
    assert measure("Red [1].", GOLD, [], {}) == {"citation_correctness": 0.0}
    unknown: dict[tuple[str, str], bool | None] = dict.fromkeys(pairs_needed(ANSWER, GOLD, ["p1"]), None)
    assert measure(ANSWER, GOLD, ["p1"], unknown) == {"citation_correctness": 0.0}  # [2] and [5] aren't there


def test_a_pair_that_nobody_looked_at_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        measure(ANSWER, GOLD, PASSAGES, {})


def test_a_grounded_answer_by_the_words_alone() -> None:
    passages = ["The gold card costs 90 euros a year.", "Lost cards are replaced within 3 days."]
    answer = "The gold card costs 90 euros a year [1]. Lost cards are replaced within 5 days [2]."
    gold = "The gold card costs 90 euros."
    support = by_overlap(pairs_needed(answer, gold, passages), 0.6)
    assert measure(answer, gold, passages, support.verdicts) == {
        "supported_claim_share": 0.5,
        "context_precision": 0.5,
        "context_precision_ranked": 1.0,
        "context_recall": 1.0,
        "citation_correctness": 0.5,
    }


@pytest.fixture(scope="module")
def faulty() -> Iterator[Faulty]:
    with serving.faulty() as server:
        yield server


def test_a_judge_at_an_endpoint_that_fails_for_some_pairs(faulty: Faulty) -> None:
    fields: dict[str, Any] = {"at": faulty.at, "model": "judge", "api_key": None, "concurrency": 4, "timeout_s": 10.0}
    fields |= {"retries": 0, "price_in": None, "price_out": None, "spending_limit": None}
    endpoint = Endpoint(EndpointFields(**fields), "evaluate.judge", first_pause_s=0.01)
    passages = ["<<say:yes>>", "<<say:**No.**>>", "<<say:I think yes>>", "<<content:null>>"]
    answer = "Red is warm [1]. Blue is cold [2]. Green is new [3]. Grey [4]."
    pairs = pairs_needed(answer, None, passages)
    support = by_judge(pairs, TEMPLATE, endpoint.asker(faithfulness.MAX_NEW_TOKENS))
    assert (support.num_out_of_form, support.num_errors) == (4, 4)
    assert measure(answer, None, passages, support.verdicts) == {
        "supported_claim_share": 1.0,
        "citation_correctness": 0.5,
    }
