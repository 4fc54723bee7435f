"""The bank's tools: what they do, what they refuse, and that nothing a model writes gets past them."""

import json
from typing import Any

import pytest

from pipelines.environments.bank import Bank, world
from pipelines.environments.environment import Environment
from pipelines.errors import DataError
from tests.environments.conftest import CARD, CHECKING, OTHERS, OTHERS_CARD, SAVINGS, STATE, TRAVEL, changed

HOSTILE: list[Any] = [
    None,
    True,
    False,
    "3970",
    "3970 OR 1=1",
    "3970; DROP TABLE cards; --",
    "' UNION SELECT 1 --",
    "x" * 1_000_000,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    3970.0,
    -1,
    -(2**63) - 1,
    2**63,
    10**4000,
    [],
    [3970],
    {"card": 3970},
    json.loads("[" * 500 + "]" * 500),
    "\ud800",
    "\0",
]


def answer(bank: Bank, name: str, **arguments: Any) -> Any:
    return json.loads(bank.call(name, arguments))


def test_seed_one_is_what_the_expectations_rest_on(bank: Bank) -> None:
    assert bank.state() == STATE


def test_show_tells_the_customers_own_and_leaves_out_what_is_usual(bank: Bank) -> None:
    assert answer(bank, "show") == {
        "checking": {"id": CHECKING, "balance": 120},
        "savings": {"id": SAVINGS, "balance": 722},
        "travel": {"id": TRAVEL, "balance": 235, "currency": "EUR"},
        "cards": {"3970": {"limit": 500}, "8857": {"limit": 100}},
    }
    answer(bank, "freeze", card=CARD)
    assert answer(bank, "show")["cards"]["3970"] == {"limit": 500, "frozen": True}


def test_a_transfer_moves_cents_and_writes_the_ledger(bank: Bank) -> None:
    assert answer(bank, "transfer", source=SAVINGS, target=CHECKING, amount=22) == {"ok": True}
    assert answer(bank, "transfer", source=CHECKING, target=OTHERS, amount=142) == {"ok": True}  # to the last cent
    assert bank.state() == changed(
        accounts=[
            [OTHERS, 2, "checking", "USD", 58700, "open"],
            [CHECKING, 1, "checking", "USD", 0, "open"],
            [SAVINGS, 1, "savings", "USD", 70000, "open"],
            [TRAVEL, 1, "travel", "EUR", 23500, "open"],
        ],
        transfers=[[CHECKING, OTHERS, 14200], [SAVINGS, CHECKING, 2200]],
    )


def test_cards_are_frozen_and_limited(bank: Bank) -> None:
    assert answer(bank, "freeze", card=CARD) == {"ok": True}
    assert answer(bank, "limit", card=8857, amount=0) == {"ok": True}
    assert bank.state() == changed(cards=[[3970, 1, 50000, 1], [5706, 2, 70000, 0], [8857, 1, 0, 0]])


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("transfer", {"source": CHECKING, "target": SAVINGS, "amount": 121}, "insufficient funds"),
        ("transfer", {"source": CHECKING, "target": SAVINGS, "amount": 0}, "bad amount"),
        ("transfer", {"source": CHECKING, "target": SAVINGS, "amount": -50}, "bad amount"),
        ("transfer", {"source": CHECKING, "target": CHECKING, "amount": 1}, "same account"),
        ("transfer", {"source": CHECKING, "target": TRAVEL, "amount": 1}, "other currency"),
        ("transfer", {"source": OTHERS, "target": CHECKING, "amount": 1}, "unknown account"),
        ("transfer", {"source": CHECKING, "target": 1, "amount": 1}, "unknown account"),
        ("transfer", {"source": CHECKING, "target": SAVINGS}, "missing amount"),
        ("transfer", {"source": CHECKING, "target": SAVINGS, "amount": 50.0}, "amount: expected an integer"),
        ("freeze", {"card": OTHERS_CARD}, "unknown card"),
        ("freeze", {"card": CARD, "because": "lost"}, "unexpected argument"),
        ("limit", {"card": CARD, "amount": -1}, "bad amount"),
        ("limit", {"card": CARD, "amount": 1_000_001}, "bad amount"),
        ("show", {"all": 1}, "unexpected argument"),
        ("close", {}, "unknown tool"),
        ("_freeze", {"card": CARD}, "unknown tool"),
        ("state", {}, "unknown tool"),
    ],
)
def test_what_is_refused_changes_nothing(bank: Bank, name: str, arguments: Any, error: str) -> None:
    assert json.loads(bank.call(name, arguments)) == {"error": error}
    assert bank.state() == STATE


def test_nothing_moves_into_a_closed_account() -> None:
    bank = Bank()
    bank.reset(kept={"environment_seed": "7"})  # its travel account, 6191, is closed
    before = bank.state()
    assert answer(bank, "show")["travel"] == {"id": 6191, "balance": 614, "status": "closed"}
    for source, target in ((2040, 6191), (6191, 2040)):
        assert answer(bank, "transfer", source=source, target=target, amount=1) == {"error": "account closed"}
    assert bank.state() == before


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: f"{type(value).__name__}-{str(value)[:12]!r}"[:40])
def test_hostile_values_leave_the_state_alone_and_are_not_repeated(bank: Bank, value: Any) -> None:
    calls: list[tuple[Any, Any]] = [
        ("freeze", {"card": value}),
        ("limit", {"card": value, "amount": 1}),
        ("limit", {"card": CARD, "amount": value}),
        ("transfer", {"source": value, "target": SAVINGS, "amount": 1}),
        ("transfer", {"source": CHECKING, "target": value, "amount": 1}),
        ("transfer", {"source": CHECKING, "target": SAVINGS, "amount": value}),
        ("freeze", {str(value): CARD}),
        ("freeze", value if value != {"card": 3970} else [value]),
        (value, {"card": CARD}),
    ]
    for name, arguments in calls:
        told = bank.call(name, arguments)
        assert set(json.loads(told)) == {"error"}
        assert len(told) < 60
    assert bank.state() == STATE


def test_an_episode_begins_afresh_whatever_went_on_before(bank: Bank) -> None:
    answer(bank, "freeze", card=CARD)
    bank.reset(kept={"environment_seed": "2"})
    assert [card[0] for card in bank.state()["cards"]] == [1814, 4798, 7792]
    bank.reset(kept={"environment_seed": "1"}, id="a", prompt=[])
    assert bank.state() == STATE


@pytest.mark.parametrize("kept", [None, {}, {"environment_seed": ""}, {"environment_seed": 1}, "1"])
def test_a_row_without_a_seed_is_named(kept: Any) -> None:
    with pytest.raises(DataError, match=r"^bank@1:7: kept holds no environment_seed"):
        Bank().reset(kept=kept, source="bank@1:7")


def test_worlds_hold_what_the_questions_need() -> None:
    worlds = [world(str(seed)) for seed in range(300)]
    for tables in worlds:
        ids = [row[0] for table in ("accounts", "cards") for row in tables[table]]
        assert len(ids) == len(set(ids))
        assert all(1000 <= number <= 9999 for number in ids)
        assert [row[2] for row in tables["accounts"] if row[1] == 1][:2] == ["checking", "savings"]
    third = [row for tables in worlds for row in tables["accounts"] if row[2] == "travel"]
    assert 110 < len(third) < 190
    assert {(row[3], row[5]) for row in third} == {("USD", "open"), ("EUR", "open"), ("USD", "closed")}


def test_a_bank_is_an_environment(bank: Bank) -> None:
    assert isinstance(bank, Environment)
    names = [tool["function"]["name"] for tool in bank.tools()]
    assert names == sorted(names) == ["freeze", "limit", "show", "transfer"]
