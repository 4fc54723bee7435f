"""Which answers become rows, by hand."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from pipelines.config.compose import compose
from pipelines.config.teaching import Keep
from pipelines.dataset.row import Row
from pipelines.generation.attempt import Attempt, spoken
from pipelines.generation.keeping import KEPT, sift
from pipelines.generation.opinion import NO, SILENT, UNREAD, YES, Opinion, read
from pipelines.generation.written import Author, make, rejected
from pipelines.tasks.verdict import Verdict
from pipelines.verification import Verification

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "integer"}}}}}]
AUTHOR = Author("teacher base abc", "abc", 1.0)


def row(number: int = 0, **changes: Any) -> Row:
    given = {
        "id": f"{number:016x}",
        "task": "support_routing",
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "completion": [{"role": "assistant", "content": "own"}],
        "answer": "right",
        "label": "",
        "source": f"file.csv:{number}",
        "group": str(number),
    }
    return Row(**(given | changes))


def tries(*texts: str | None, of: int = 0, **told: Any) -> list[Attempt]:
    return [
        Attempt(f"{of:016x}", number, text, seed=number, error="HTTP 400" if text is None else None, **told)
        for number, text in enumerate(texts)
    ]


def verified() -> Verification:
    def verify(completion: str, row: Row) -> Verdict:
        return Verdict("right" in completion, completion)

    return Verification(verify, "task.verify", 1.0)


def keep(**changes: Any) -> Keep:
    return Keep(**({"verified": True, "per_row": 9, "similarity": None} | changes))


def reasons(attempts: Sequence[Attempt], settings: Keep, given: Row | None = None, judge: Any = None) -> list[str]:
    rows = {(given or row()).id: given or row()}
    return [one.reason for one in sift(attempts, rows, settings, verified() if settings.verified else None, judge)]


def test_what_is_in_form_and_right_is_kept_once() -> None:
    found = reasons(tries("right", "wrong", " \n", None, "right", "right!"), keep())
    assert found == [KEPT, "wrong", "empty", "error", "duplicate", KEPT]
    assert reasons(tries("right", finished=False), keep()) == ["unfinished"]
    assert reasons([*tries(None, unasked=True)], keep()) == ["unasked"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('right <tool_call>{"name": "look", "arguments": {}}</tool_call>', "malformed"),
        ("right <|im_end|>", "malformed"),
        ("<think>right", "malformed"),
        ("<think>hm</think>right", KEPT),
        ("right a <| b |> c", KEPT),
    ],
)
def test_what_a_student_must_not_learn_to_write_is_malformed(text: str, found: str) -> None:
    assert reasons(tries(text), keep()) == [found]


def test_calls_become_messages_where_tools_are_offered_and_broken_ones_are_malformed() -> None:
    offered = row(tools=TOOLS)
    call = 'right<tool_call>{"name": "look", "arguments": {"at": "3"}}</tool_call>'
    assert reasons(tries(call, call[:-14]), keep(), offered) == [KEPT, "malformed"]
    function = {"name": "look", "arguments": {"at": 3}}
    expected = {"role": "assistant", "content": "right", "tool_calls": [{"type": "function", "function": function}]}
    assert tries(call)[0].completion(offered) == [expected]


def test_at_most_so_many_of_a_row_and_no_two_alike() -> None:
    texts = ["right one two three", "right one two four", "right five six seven", "right eight nine ten"]
    assert reasons(tries(*texts), keep(per_row=2)) == [KEPT, KEPT, "over per_row", "over per_row"]
    # 3 of 5 words are shared by the first two: 0.6.
    assert reasons(tries(*texts), keep(similarity=0.6)) == [KEPT] * 4
    assert reasons(tries(*texts), keep(similarity=0.59)) == [KEPT, "similar", KEPT, KEPT]
    assert reasons(tries(*texts), keep(similarity=0.59, per_row=2)) == [KEPT, "similar", KEPT, "over per_row"]


def test_a_judge_is_asked_about_what_is_right_alone_and_read_strictly() -> None:
    asked: list[tuple[str, str]] = []
    said = iter([Opinion(YES, "yes"), Opinion(NO, "No."), Opinion(UNREAD, "Maybe"), Opinion(SILENT, "HTTP 500")])

    def judge(pairs: Sequence[tuple[str, str]]) -> list[Opinion]:
        asked.extend(pairs)
        return [next(said) for _ in pairs]

    found = reasons(tries("right 1", "bad", "right 2", "right 3", "right 4"), keep(), judge=judge)
    assert found == [KEPT, "wrong", "judge says no", "judge unread", "judge silent"]
    assert asked == [("Question 0?", f"right {number}") for number in (1, 2, 3, 4)]
    read_as = {"yes": YES, " **Yes.** ": YES, "NO": NO, "Answer: no": NO, "yes, it is": UNREAD, "": UNREAD}
    assert {text: read(text).said for text in read_as} == read_as


def test_a_judges_no_makes_room_for_the_next() -> None:
    def judge(pairs: Sequence[tuple[str, str]]) -> list[Opinion]:
        return [Opinion(NO if answer == "right one two" else YES, "") for _, answer in pairs]

    found = reasons(tries("right one two", "right two one"), keep(similarity=0.5, per_row=1), judge=judge)
    assert found == ["judge says no", KEPT]


def test_without_a_verify_whatever_is_in_form_is_kept() -> None:
    assert reasons(tries("wrong", ""), keep(verified=False)) == [KEPT, "empty"]


def test_rows_that_share_a_prompt_share_no_answer() -> None:
    rows = {one.id: one for one in (row(0), row(1, prompt=row(0).prompt))}
    found = sift([*tries("right"), *tries("right", of=1)], rows, keep(), verified(), None)
    assert [one.reason for one in found] == [KEPT, "duplicate"]


def test_rows_know_where_they_come_from_and_their_ids_are_of_their_content() -> None:
    task = compose([]).config.task
    rows = [row(0), row(1), row(2, completion=[]), row(3)]
    attempts = [
        *tries("right", "right too"),
        *tries("bad", of=1),
        *tries("bad", of=2),
        *tries(None, unasked=True, of=3),
    ]
    sifted = sift(attempts, {one.id: one for one in rows}, keep(), verified(), None)
    made = make(task, rows, sifted, "own", AUTHOR)
    assert (made.num_taught, made.num_own, made.num_missing, made.num_unasked) == (1, 1, 1, 1)
    assert [one.id for one in made.rows] == sorted(one.id for one in made.rows)
    by_id = {one.id: one for one in made.rows}
    told = {one["id"]: one for one in made.provenance}
    assert told.keys() == by_id.keys()
    assert by_id[rows[1].id] == rows[1]
    assert (told[rows[1].id]["by"], told[rows[1].id]["try"]) == ("own", None)
    taught = sorted(
        (t["try"], t["row"], t["seed"], t["verdict"], by_id[i].source) for i, t in told.items() if t["try"] is not None
    )
    source = f"teacher base abc:{rows[0].id}"
    assert taught == [(0, rows[0].id, 0, True, f"{source}.0"), (1, rows[0].id, 1, True, f"{source}.1")]
    again = make(task, rows[::-1], sifted, "drop", AUTHOR)
    assert [one.id for one in again.rows] == [one.id for one in made.rows if one.id != rows[1].id]
    other = make(task, rows, sifted, "drop", Author("teacher other", "x", 1.0))
    assert not {one.id for one in other.rows} & set(by_id)
    apart = rejected(sifted, {one.id: one for one in rows})
    assert [(one["row"], one["try"], one["reason"], one["begins"]) for one in apart] == [
        (rows[1].id, 0, "wrong", "bad"),
        (rows[2].id, 0, "wrong", "bad"),
    ]


def test_an_episode_is_shown_with_its_calls() -> None:
    function = {"name": "look", "arguments": {"at": 3}}
    said: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": "look", "content": "nothing"},
        {"role": "assistant", "content": "Done."},
    ]
    (played,) = tries(json.dumps(said), played=True)
    assert played.completion(row()) == said
    assert spoken(said) == '[calls] look {"at": 3}\n[look answers] nothing\n[says] Done.'
    wrong = sift([played], {row().id: row()}, keep(), verified(), None)
    assert wrong[0].reason == "wrong state"
