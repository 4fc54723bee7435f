import numpy as np
import pytest

from pipelines.dataset.row import Row
from pipelines.errors import DataError
from pipelines.evaluation.answer import Answer
from pipelines.evaluation.evidence import gather
from pipelines.evaluation.intents import OTHER, UNREAD, confusion, intent_table, worst
from pipelines.interval import wilson

DECLINE = "out_of_scope"
Labelled = tuple[list[Row], dict[str, list[Answer]]]


def test_the_table_as_counted_by_hand(labelled: Labelled) -> None:
    table = {intent.label: intent for intent in intent_table(*labelled)}
    assert {label: intent.num_rows for label, intent in table.items()} == {"a": 4, "b": 3, "c": 1, DECLINE: 2}
    assert table["a"].results["base"].accuracy == wilson(1, 4)
    assert table["a"].results["adapter"].accuracy == wilson(3, 4)
    assert table["b"].results["adapter"].accuracy == wilson(2, 3)
    assert (table["b"].results["base"].wrong, table["b"].results["base"].num_wrong) == ("a", 2)
    assert table["c"].results["base"].wrong == UNREAD
    assert table["c"].results["adapter"].wrong is None


def test_equally_frequent_wrong_answers_are_taken_by_name(labelled: Labelled) -> None:
    rows, answers = labelled
    kept = [0, 2, 1]
    table = intent_table([rows[i] for i in kept], {"base": [answers["base"][i] for i in kept]})
    assert (table[0].results["base"].wrong, table[0].results["base"].num_wrong) == ("b", 1)


def test_the_worst_come_first_and_faultless_labels_never(labelled: Labelled) -> None:
    table = intent_table(*labelled)
    assert [intent.label for intent in worst(table, 10, "adapter")] == ["b", "a"]
    assert [intent.label for intent in worst(table, 1, "adapter")] == ["b"]
    assert [intent.label for intent in worst(table, 10, "base")] == ["c", "a", "b", DECLINE]


def test_confusion_counts_as_counted_by_hand(labelled: Labelled) -> None:
    rows, answers = labelled
    table = confusion(rows, answers["base"], ["b", "a"])
    assert table.columns == ["b", "a", OTHER, UNREAD]
    assert table.counts.tolist() == [[1, 2, 0, 0], [1, 1, 1, 1]]


def test_frequent_answers_outside_the_labels_get_their_own_column(labelled: Labelled) -> None:
    rows, answers = labelled
    table = confusion(rows, answers["base"], ["b"])
    assert table.columns == ["b", "a", OTHER, UNREAD]
    assert table.counts.tolist() == [[1, 2, 0, 0]]


def test_a_correct_answer_spelled_otherwise_counts_for_its_label(labelled: Labelled) -> None:
    rows, _ = labelled
    answers = [Answer(row.id, "A!", True, "A", 1, True) for row in rows[:2]]
    assert confusion(rows[:2], answers, ["a"]).counts.tolist() == [[2, 0, 0]]


def test_evidence_compares_on_in_scope_rows_only(labelled: Labelled) -> None:
    rows, answers = labelled
    evidence = gather(rows, answers, DECLINE, num_worst=2, resamples=500, seed=0)
    assert evidence.comparison.difference.value == pytest.approx(6 / 8 - 2 / 8)
    assert (evidence.comparison.num_gained, evidence.comparison.num_lost) == (5, 1)
    assert evidence.overall.num_rows == 8
    assert evidence.overall.results["adapter"].accuracy.value == evidence.scores["adapter"]["accuracy"]
    assert [intent.label for intent in evidence.worst] == ["b", "a"]
    assert evidence.samples == [3, 6]


def test_samples_are_a_seeded_draw_of_thirty(labelled: Labelled) -> None:
    rows = [labelled[0][7]] * 100
    answers = {subject: [labelled[1]["base"][7]] * 100 for subject in ("base", "adapter")}
    draws = [gather(rows, answers, DECLINE, 2, 100, seed).samples for seed in (0, 0, 1)]
    assert len(set(draws[0])) == 30
    assert draws[0] == sorted(draws[0])
    assert draws[0] == draws[1] != draws[2]
    assert np.mean(draws[0]) > 30


def test_rows_that_are_all_out_of_scope_are_refused(labelled: Labelled) -> None:
    rows, answers = labelled
    outside = {subject: given[8:] for subject, given in answers.items()}
    with pytest.raises(DataError, match="no in-scope row to score: all 2 rows"):
        gather(rows[8:], outside, DECLINE, 2, 100, 0)
