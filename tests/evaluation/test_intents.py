from dataclasses import replace

import pytest

from pipelines.evaluation.intents import OTHER, UNREAD, confusion, intent_table, worst
from pipelines.evaluation.record import HELDOUT, Record
from pipelines.interval import rate, wilson
from tests.evaluation.example import DECLINE, Asked, answer

LABELS = ["a", "a", "a", "a", "b", "b", "b", "c", DECLINE, DECLINE]
READ: dict[str, list[str | None]] = {
    "base": ["a", "b", None, DECLINE, "a", "a", "b", None, "a", DECLINE],
    "adapter": ["a", "a", "a", "b", "b", "b", "a", "c", DECLINE, DECLINE],
}
Answers = dict[str, list[Record]]


@pytest.fixture(scope="module")
def answers() -> Answers:
    """Ten rows that can be counted by hand: eight in scope, two out of scope."""
    rows = [Asked(f"r{place}", label, f"g{place}", "") for place, label in enumerate(LABELS)]
    return {
        subject: [answer(row, HELDOUT, subject, "", label) for row, label in zip(rows, read, strict=True)]
        for subject, read in READ.items()
    }


def test_the_table_as_counted_by_hand(answers: Answers) -> None:
    table = {intent.label: intent.results for intent in intent_table(answers, 500, 0)}
    sizes = {label: results["base"].num_rows for label, results in table.items()}
    assert sizes == {"a": 4, "b": 3, "c": 1, DECLINE: 2}
    assert table["a"]["base"].accuracy == wilson(1, 4)
    assert table["a"]["adapter"].accuracy == wilson(3, 4)
    assert table["b"]["adapter"].accuracy == wilson(2, 3)
    assert (table["b"]["base"].wrong, table["b"]["base"].num_wrong) == ("a", 2)
    assert table["c"]["base"].wrong == UNREAD
    assert table["c"]["adapter"].wrong is None


def test_rows_without_a_verdict_count_for_nothing(answers: Answers) -> None:
    failed = [
        replace(r, correct=None, error="timeout") if r.label == "c" or r.row_id == "r0" else r for r in answers["base"]
    ]
    table = {intent.label: intent.results for intent in intent_table({**answers, "base": failed}, 500, 0)}
    assert set(table["c"]) == {"adapter"}
    assert (table["a"]["base"].accuracy, table["a"]["base"].num_rows) == (wilson(0, 3), 3)
    assert confusion(failed, ["a", "c"]).counts.sum() == 3


def test_rows_of_one_group_are_one_draw(answers: Answers) -> None:
    grouped = [replace(r, group="g") if r.row_id in ("r0", "r1") else r for r in answers["adapter"]]
    table = {intent.label: intent.results for intent in intent_table({"adapter": grouped}, 500, 3)}
    assert table["a"]["adapter"].accuracy == rate([True, True, True, False], ["g", "g", "g2", "g3"], 500, 3)
    assert table["b"]["adapter"].accuracy == wilson(2, 3)


def test_equally_frequent_wrong_answers_are_taken_by_name(answers: Answers) -> None:
    kept = [answers["base"][place] for place in (0, 2, 1)]
    (intent,) = intent_table({"base": kept}, 500, 0)
    assert (intent.results["base"].wrong, intent.results["base"].num_wrong) == ("b", 1)


def test_the_worst_come_first_and_faultless_labels_never(answers: Answers) -> None:
    table = intent_table(answers, 500, 0)
    assert [intent.label for intent in worst(table, 10, "adapter")] == ["b", "a"]
    assert [intent.label for intent in worst(table, 1, "adapter")] == ["b"]
    assert [intent.label for intent in worst(table, 10, "base")] == ["c", "a", "b", DECLINE]
    assert worst(table, 10, "unknown") == []


def test_confusion_counts_as_counted_by_hand(answers: Answers) -> None:
    table = confusion(answers["base"], ["b", "a"])
    assert table.columns == ["b", "a", OTHER, UNREAD]
    assert table.counts.tolist() == [[1, 2, 0, 0], [1, 1, 1, 1]]


def test_frequent_answers_outside_the_labels_get_their_own_column(answers: Answers) -> None:
    table = confusion(answers["base"], ["b"])
    assert table.columns == ["b", "a", OTHER, UNREAD]
    assert table.counts.tolist() == [[1, 2, 0, 0]]


def test_a_correct_answer_spelled_otherwise_counts_for_its_label(answers: Answers) -> None:
    spelled = [replace(r, parsed="A", correct=True) for r in answers["base"][:2]]
    assert confusion(spelled, ["a"]).counts.tolist() == [[2, 0, 0]]
