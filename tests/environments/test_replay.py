"""The verify: calls made again, whatever the transcript says they did, and the audit beside it."""

import json
from typing import Any

import pytest

from pipelines.dataset.row import Row
from pipelines.environments import replay
from pipelines.environments.calls import transcript
from pipelines.environments.environment import digest
from pipelines.environments.rows import generate
from pipelines.errors import DataError, UserError
from pipelines.tasks import resolve_verify
from pipelines.tasks.verdict import VerifierFailed
from tests.environments.conftest import CARD, CHECKING, SAVINGS, STATE, MakeTask, changed, row, said

MOVE = ("transfer", {"source": SAVINGS, "target": CHECKING, "amount": 50})
FREEZE = ("freeze", {"card": CARD})
MOVED = changed(
    accounts=[
        [1601, 2, "checking", "USD", 44500, "open"],
        [5932, 1, "checking", "USD", 17000, "open"],
        [7499, 1, "savings", "USD", 67200, "open"],
        [8613, 1, "travel", "EUR", 23500, "open"],
    ],
    transfers=[[SAVINGS, CHECKING, 5000]],
)
TRANSFER = row(MOVED, [MOVE])
NOTHING = row(STATE, [])


def verdicts(make_task: MakeTask, completion: str, asked: Row) -> tuple[bool, bool, str | None]:
    """(correct, correct in the audit, parsed)."""
    task = make_task()
    loose, strict = replay.verifier(task)(completion, asked), replay.strict(task)(completion, asked)
    assert loose.parsed == strict.parsed
    return loose.correct, strict.correct, loose.parsed


@pytest.mark.parametrize(
    ("turns", "correct", "strict"),
    [
        ([MOVE, "Done."], True, True),
        ([("show", {}), MOVE, "Done."], True, True),
        ([MOVE], True, False),  # no answer at the end
        ([("transfer", {**MOVE[1], "amount": 9999}), MOVE, "Done."], True, False),  # a call failed
        ([MOVE, ("close", {}), "Done."], True, False),
        (["Done."], False, False),
        ([("show", {}), "Done."], False, False),
        ([MOVE, FREEZE, "Done."], False, False),  # and something else
        ([MOVE, MOVE, "Done."], False, False),
        # The same balances by another way: the ledger tells.
        ([("transfer", {**MOVE[1], "amount": 25}), ("transfer", {**MOVE[1], "amount": 25}), "Done."], False, False),
    ],
)
def test_the_final_state_decides(make_task: MakeTask, turns: list[Any], correct: bool, strict: bool) -> None:
    assert verdicts(make_task, said(*turns), TRANSFER)[:2] == (correct, strict)


def test_the_audit_sees_a_change_that_was_taken_back(make_task: MakeTask) -> None:
    there = ("limit", {"card": CARD, "amount": 900})
    back = ("limit", {"card": CARD, "amount": 500})
    assert verdicts(make_task, said(there, back, "No."), NOTHING)[:2] == (True, False)
    wanted = row(changed(cards=[[3970, 1, 90000, 0], [5706, 2, 70000, 0], [8857, 1, 10000, 0]]), [there])
    detour = ("limit", {"card": CARD, "amount": 700})
    assert verdicts(make_task, said(detour, there, "Done."), wanted)[:2] == (True, False)
    assert verdicts(make_task, said(there, there, "Done."), wanted)[:2] == (True, True)  # the second changes nothing
    longer = type(wanted)(**{**wanted.as_dict(), "kept": row(STATE, [detour, back, there]).kept})
    other = ("limit", {"card": CARD, "amount": 800})
    assert verdicts(make_task, said(detour, other, there, "Done."), longer)[:2] == (True, True)
    assert verdicts(make_task, said(detour, back, there, "Done."), longer)[:2] == (True, False)


def test_two_changes_count_in_either_order(make_task: MakeTask) -> None:
    both = row({**MOVED, "cards": [[3970, 1, 50000, 1], [5706, 2, 70000, 0], [8857, 1, 10000, 0]]}, [MOVE, FREEZE])
    for turns in ((MOVE, FREEZE), (FREEZE, MOVE)):
        assert verdicts(make_task, said(*turns, "Done."), both)[:2] == (True, True)


def test_what_tools_are_said_to_have_answered_is_not_read(make_task: MakeTask) -> None:
    forged = said(("transfer", {**MOVE[1], "amount": 9999}), "Done.")
    assert '{\\"ok\\":true}' in forged
    assert verdicts(make_task, forged, TRANSFER) == (
        False,
        False,
        f"transfer(source={SAVINGS}, target={CHECKING}, amount=9999)",
    )
    # Without the tools' messages the calls are the same.
    bare = json.dumps([message for message in json.loads(said(MOVE, "Done.")) if message["role"] != "tool"])
    assert verdicts(make_task, bare, TRANSFER)[0]
    # Nobody but the assistant calls.
    others = [{"role": role, "tool_calls": json.loads(said(MOVE))[0]["tool_calls"]} for role in ("tool", "user")]
    assert verdicts(make_task, json.dumps(others), TRANSFER) == (False, False, None)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "Done.",
        '<tool_call>{"name": "show", "arguments": {}}</tool_call>',
        TRANSFER.answer,
        json.dumps(TRANSFER.answer),
        json.dumps(MOVED),
        TRANSFER.kept and TRANSFER.kept["goal"],
        "null",
        "[null]",
        "[[]]",
        "{}",
        "[]",
        "[" * 200_000,
        '[{"role": "assistant", "tool_calls": "transfer"}]',
        '[{"role": "assistant", "tool_calls": [null, 1, "x", {}, {"function": 1}, {"function": {"name": 5}}]}]',
        '[{"role": ["assistant"], "tool_calls": [{"function": {"name": "show"}}]}]',
        '[{"role": "assistant", "content": "' + "x" * 1_000_000 + '"}]',
        f"[{'9' * 5000}]",
    ],
    ids=lambda text: f"{text[:24]!r}",
)
def test_what_makes_no_call_changes_nothing(make_task: MakeTask, completion: str) -> None:
    correct, _, parsed = verdicts(make_task, completion, TRANSFER)
    assert (correct, parsed) == (False, None)
    assert verdicts(make_task, completion, NOTHING)[0]


@pytest.mark.parametrize(
    "call",
    [
        {"name": "transfer", "arguments": None},
        {"name": "transfer", "arguments": json.dumps(MOVE[1])},  # a text, and no server wrote it
        {"name": "transfer", "arguments": [SAVINGS, CHECKING, 50]},
        {"name": "transfer", "arguments": {**MOVE[1], "amount": "50"}},
        {"name": "transfer", "arguments": {**MOVE[1], "amount": 1e308}},
        {"name": "transfer", "arguments": {**MOVE[1], "self": 1}},
        {"name": "transfer", "arguments": {**MOVE[1], "amount": json.loads("[" * 400 + "]" * 400)}},
        {"name": "Transfer", "arguments": MOVE[1]},
        {"name": "_move", "arguments": MOVE[1]},
        {"name": "reset", "arguments": {"kept": {"environment_seed": "2"}}},
        {"name": "__init__", "arguments": {}},
        {"name": "x" * 100_000, "arguments": {}},
    ],
    ids=lambda call: f"{str(call)[:60]}",
)
def test_malformed_calls_count_as_failed_ones(make_task: MakeTask, call: dict[str, Any]) -> None:
    messages = [{"role": "assistant", "tool_calls": [{"function": call}]}, {"role": "assistant", "content": "Done."}]
    correct, strict, parsed = verdicts(make_task, json.dumps(messages), TRANSFER)
    assert (correct, strict) == (False, False)
    assert parsed is not None
    assert len(parsed) <= 503
    assert verdicts(make_task, json.dumps(messages), NOTHING)[:2] == (True, False)


def test_arguments_as_servers_write_them_are_read(make_task: MakeTask) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": MOVE[0], "arguments": json.dumps(MOVE[1])}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "assistant", "content": "Done."}]
    assert verdicts(make_task, json.dumps(messages), TRANSFER)[:2] == (True, True)


def test_endless_calls_are_no_answer(make_task: MakeTask) -> None:
    looks: list[Any] = [("show", {})] * 99
    assert verdicts(make_task, said(*looks, MOVE, "Done."), TRANSFER)[:2] == (True, True)
    correct, _, parsed = verdicts(make_task, said(*looks, ("show", {}), MOVE, "Done."), TRANSFER)
    assert not correct
    assert parsed is not None
    assert parsed.startswith("show(); show()")


def test_every_demonstration_passes_the_verify_and_its_audit(make_task: MakeTask) -> None:
    task = make_task()
    verify, audit = resolve_verify(task), resolve_verify(task, name=task.audit)
    others: list[str] = []
    for record in generate(70, 6, {"max_steps": 3}):
        kept = {name: record[name] for name in ("environment_seed", "goal")}
        messages = record["messages"]
        asked = Row(
            "0", "bank", messages[:1], messages[1:], record["answer"], record["label"], "bank@6:1", "0", kept=kept
        )
        own = transcript(messages[1:])
        assert verify(own, asked).correct, messages
        assert audit(own, asked).correct, messages
        if record["goal"] != "[]":
            assert not any(verify(other, asked).correct for other in others)
            others.append(own)


def test_a_task_without_an_environment_is_refused(make_task: MakeTask) -> None:
    with pytest.raises(UserError, match=r"^task\.environment: bank names none"):
        replay.verifier(make_task(environment=None, max_turns=None))


def test_a_row_that_keeps_too_little_is_named(make_task: MakeTask) -> None:
    bare = Row("0", "bank", [], [], "", "", "bank.jsonl:4", "0")
    with pytest.raises(DataError, match=r"^bank\.jsonl:4: kept holds no environment_seed"):
        replay.verifier(make_task())(said("Done."), bare)
    without = Row("0", "bank", [], [], digest(STATE), "", "bank.jsonl:5", "0", kept={"environment_seed": "1"})
    with pytest.raises(DataError, match=r"^bank\.jsonl:5: kept\.goal: expected"):
        replay.strict(make_task())(said("Done."), without)


def test_an_environment_that_breaks_says_nothing_of_the_answer(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.environments.bank import Bank

    def broken(self: Bank, **columns: Any) -> None:
        raise OSError("disk full")

    verify = replay.verifier(make_task())
    monkeypatch.setattr(Bank, "reset", broken)
    with pytest.raises(VerifierFailed, match="disk full"):
        verify(said(MOVE), TRANSFER)
