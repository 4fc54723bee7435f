import json
from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import hypergeom

from pipelines.errors import UserError
from pipelines.evaluation.record import HELDOUT, Record
from pipelines.evaluation.slices import DEFINITIONS, Slice, SliceTable, check_columns, holm, slices
from pipelines.interval import rate, wilson


def make_record(number: int, correct: bool | None, label: str = "", kept: dict[str, Any] | None = None) -> Record:
    return Record(
        suite=HELDOUT,
        subject="adapter",
        row_id=f"r{number}",
        kind="",
        group=f"g{number}",
        label=label,
        source=f"data/{'a' if number % 2 else 'b'}.jsonl:{number + 1}",
        kept=json.dumps(kept) if kept is not None else "",
        prompt="[]",
        expected="",
        in_scope=True,
        answer="",
        parsed=None,
        correct=correct,
        declined=None,
        error=None,
        finished=True,
        prompt_tokens=None,
        num_tokens=None,
        latency_s=None,
        cost=None,
    )


def counted(**by_label: tuple[int, int]) -> list[Record]:
    """Records by label: how many, and how many of them right."""
    found: list[Record] = []
    for label, (number, right) in by_label.items():
        found += [make_record(len(found) + i, i < right, label) for i in range(number)]
    return found


def table(records: list[Record], *columns: str, min_rows: int = 3) -> SliceTable:
    return slices(records, columns, min_rows, 500, 0)


def by_value(found: SliceTable) -> dict[str, Slice]:
    return {one.value: one for one in found.slices}


def fisher(inside: tuple[int, int], outside: tuple[int, int]) -> float:
    """Both tables' (rows, right): the chance of all tables with these margins that are no likelier."""
    total, right = inside[0] + outside[0], inside[1] + outside[1]
    chances = hypergeom(total, right, inside[0]).pmf(range(inside[0] + 1))
    return float(chances[chances <= chances[inside[1]] * (1 + 1e-9)].sum())


def test_slices_as_counted_by_hand() -> None:
    found = by_value(table(counted(a=(10, 9), b=(6, 2), c=(4, 3)), "label"))
    assert list(found) == ["a", "b", "c"]
    assert [one.num_rows for one in found.values()] == [10, 6, 4]
    assert found["b"].accuracy == wilson(2, 6)
    assert found["b"].difference == pytest.approx(2 / 6 - 12 / 14)
    p = [fisher((10, 9), (10, 5)), fisher((6, 2), (14, 12)), fisher((4, 3), (16, 11))]
    assert [one.p for one in found.values()] == pytest.approx(p)
    assert [one.adjusted_p for one in found.values()] == pytest.approx(holm(p))


def test_holm_as_in_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_is_adjusted_over_all_columns() -> None:
    records = [
        replace(record, kept=json.dumps({"half": str(number % 2)}))
        for number, record in enumerate(counted(a=(10, 9), b=(10, 2)))
    ]
    alone, both = table(records, "label"), table(records, "label", "half")
    assert alone.slices[0].p == both.slices[0].p
    assert alone.slices[0].adjusted_p == pytest.approx(2 * (alone.slices[0].p or 0))
    assert both.slices[0].adjusted_p == pytest.approx(4 * (both.slices[0].p or 0))
    assert len(both.slices) == 4


def test_the_worst_slice_has_rows_enough() -> None:
    records = counted(tiny=(2, 0), poor=(8, 3), good=(10, 9))
    worst = table(records, "label").worst
    assert worst is not None
    assert worst.value == "poor"
    smallest = table(records, "label", min_rows=2).worst
    assert smallest is not None
    assert smallest.value == "tiny"
    assert table(records, "label", min_rows=11).worst is None
    assert table(records, "label", min_rows=11).metrics() == {}


def test_ties_go_to_more_rows_and_then_by_name() -> None:
    for records, expected in (
        (counted(b=(4, 2), a=(8, 4), c=(8, 8)), "a"),
        (counted(b=(4, 2), a=(4, 2), c=(8, 8)), "a"),
        (counted(a=(4, 2), b=(8, 4), c=(8, 8)), "b"),
    ):
        worst = table(records, "label").worst
        assert worst is not None
        assert worst.value == expected
    halves = [replace(record, group=record.label.upper()) for record in counted(a=(4, 2), b=(4, 4))]
    worst = table(halves, "label", "group").worst
    assert worst is not None
    assert worst.column == "group"


def test_the_metrics_are_the_worst_slices() -> None:
    metrics = table(counted(a=(10, 9), b=(6, 2)), "label").metrics()
    expected = wilson(2, 6)
    assert metrics == {
        "worst_slice_accuracy": expected.value,
        "worst_slice_accuracy_low": expected.low,
        "worst_slice_accuracy_high": expected.high,
        "worst_slice_rows": 6.0,
    }
    assert {name.removesuffix("_low").removesuffix("_high") for name in metrics} < set(DEFINITIONS)


def test_rows_of_a_group_are_one_draw() -> None:
    records = [replace(record, group=str(number // 4)) for number, record in enumerate(counted(a=(40, 20), b=(8, 8)))]
    found = by_value(table(records, "label"))["a"]
    assert found.accuracy == rate([True] * 20 + [False] * 20, [str(i // 4) for i in range(40)], 500, 0)
    assert found.accuracy.method == "bootstrap over groups"


def test_rows_without_verdict_are_no_part() -> None:
    records = [*counted(a=(5, 4), b=(5, 5)), make_record(20, None, "a"), make_record(21, None, "c")]
    assert {one.value: one.num_rows for one in table(records, "label").slices} == {"a": 5, "b": 5}


def test_the_source_is_its_file() -> None:
    found = by_value(table(counted(a=(10, 9)), "source"))
    assert {value: one.num_rows for value, one in found.items()} == {"data/a.jsonl": 5, "data/b.jsonl": 5}


def test_kept_values_of_every_kind_are_names() -> None:
    kept: list[dict[str, Any]] = [
        {"x": "mail"},
        {"x": 10},
        {"x": 9},
        {"x": True},
        {"x": None},
        {},
        {"x": ""},
        {"x": ["a"]},
    ]
    records = [make_record(number, True, kept=held) for number, held in enumerate(kept)]
    assert [one.value for one in table(records, "x").slices] == ["9", "10", '["a"]', "mail", "true"]


def test_many_numbers_are_cut_into_quarters() -> None:
    numbers = [*range(1, 37), 36, 36, 36, 36]
    records = [make_record(i, True, kept={"length": str(number)}) for i, number in enumerate(numbers)]
    found = by_value(table(records, "length"))
    assert {value: one.num_rows for value, one in found.items()} == {
        "quartile 1: 1 to 10.75": 10,
        "quartile 2: over 10.75 to 20.5": 10,
        "quartile 3: over 20.5 to 30.25": 10,
        "quartile 4: over 30.25 to 36": 10,
    }


def test_quarters_that_ties_close_are_joined() -> None:
    numbers = [0.0] * 60 + [float(number) for number in range(1, 41)]
    records = [make_record(i, True, kept={"n": number}) for i, number in enumerate(numbers)]
    found = by_value(table(records, "n"))
    assert [one.num_rows for one in found.values()] == [60, 15, 25]
    assert list(found) == ["quartile 1: 0 to 0", "quartile 2: over 0 to 15.25", "quartile 3: over 15.25 to 40"]
    ending = [make_record(i, True, kept={"n": min(i, 35)}) for i in range(100)]
    assert sum(one.num_rows for one in table(ending, "n").slices) == 100


def test_few_numbers_texts_and_labels_stay_as_they_are() -> None:
    few = [make_record(i, True, kept={"n": i % 30}) for i in range(60)]
    assert len(table(few, "n").slices) == 30
    words = [make_record(i, True, kept={"n": "x" if i == 0 else i}) for i in range(60)]
    assert len(table(words, "n").slices) == 60
    labels = [make_record(i, True, label=str(i)) for i in range(60)]
    assert len(table(labels, "label").slices) == 60


def test_a_column_that_no_row_has_is_a_mistake_that_names_the_others() -> None:
    records = [make_record(0, True, kept={"channel": "mail"}), make_record(1, True, kept={"length": 3})]
    with pytest.raises(UserError) as caught:
        table(records, "chanel")
    message = str(caught.value)
    assert "evaluate.slices.columns: no row has a column 'chanel'" in message
    assert "label, source, group, kind, channel, length; nearest valid name: channel" in message
    with pytest.raises(UserError, match=r"'lable'.*nearest valid name: label"):
        check_columns(["label", "lable"], [{}])
    check_columns(["label", "channel"], [{}, {"channel": "mail"}])


def test_columns_that_say_nothing_give_no_slices() -> None:
    found = table(counted(a=(5, 4)), "kind")
    assert (found.slices, found.worst) == ([], None)
    assert found.note == "No slice: no row has a value in these columns."
    assert table([], "label").slices == []


def test_one_value_has_nothing_to_differ_from() -> None:
    found = table(counted(a=(5, 4)), "label")
    assert (found.slices[0].difference, found.slices[0].p, found.slices[0].adjusted_p) == (None, None, None)
    assert found.note == "1 slice of 1 column looked at; none has other rows to differ from."
    assert found.worst == found.slices[0]


def test_the_note_says_how_many_were_looked_at_and_what_chance_does() -> None:
    note = table(counted(a=(10, 9), b=(6, 2), c=(4, 3)), "label", "source", min_rows=7).note
    assert "5 slices of 2 columns looked at" in note
    assert "0.2 of 5 would still differ from the other rows at 5 % by chance alone" in note
    assert "Holm-adjusted" in note
    assert "Slices under 7 rows" in note
