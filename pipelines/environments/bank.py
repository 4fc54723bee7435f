"""A small bank in SQLite: accounts, cards and transfers, which four tools show and change.

The tools are few and their texts short, because a model pays for every token of their schemas in every prompt. Amounts
are whole units of the account's currency for the tools, and cents in the tables.
"""

import json
import random
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.environments.environment import Tool, tool
from pipelines.environments.texts import seed_of

CENTS = 100
MOST = 1_000_000
OWN, OTHER = 1, 2  # customers: whom the tools serve, and somebody else

TOOLS = (
    tool("Freeze.", "freeze", card="number"),
    tool("Set the limit.", "limit", card="number", amount="dollars"),
    tool("Show all.", "show"),
    tool("Move money.", "transfer", source="account", target="account", amount="dollars"),
)
_SCHEMAS: dict[str, dict[str, Any]] = {item["function"]["name"]: item["function"]["parameters"] for item in TOOLS}

_TABLES = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customers, name TEXT NOT NULL,
    currency TEXT NOT NULL, cents INTEGER NOT NULL CHECK (cents >= 0), status TEXT NOT NULL
);
CREATE TABLE cards (
    id INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customers,
    limit_cents INTEGER NOT NULL CHECK (limit_cents >= 0), frozen INTEGER NOT NULL
);
CREATE TABLE transfers (
    step INTEGER PRIMARY KEY, source INTEGER NOT NULL REFERENCES accounts,
    target INTEGER NOT NULL REFERENCES accounts, cents INTEGER NOT NULL CHECK (cents > 0)
);
"""
# Everything but when: `step` counts the transfers, so it stands for the time.
_STATE = {
    "customers": "SELECT id, name FROM customers ORDER BY id",
    "accounts": "SELECT id, customer, name, currency, cents, status FROM accounts ORDER BY id",
    "cards": "SELECT id, customer, limit_cents, frozen FROM cards ORDER BY id",
    "transfers": "SELECT source, target, cents FROM transfers ORDER BY source, target, cents",
}


class _Refused(Exception):
    """What the bank won't do; nothing has changed."""


class Bank:
    """The bank of one customer, who has a row's accounts and cards beside another customer's.

    No answer repeats what a model wrote, and no call raises: what is wrong is told as `{"error": ...}`.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._does: dict[str, Callable[..., Any]] = {
            "freeze": self._freeze,
            "limit": self._limit,
            "show": self._show,
            "transfer": self._transfer,
        }

    def reset(self, **row: Any) -> None:
        """Fills the tables from the row's seed. Raises DataError where the row keeps none."""
        seed = seed_of(row)
        drop = "".join(f"DROP TABLE IF EXISTS {table};" for table in reversed(_STATE))
        self._database.executescript(drop + _TABLES)
        for table, values in world(seed).items():
            marks = ", ".join("?" * len(values[0]))
            self._database.executemany(f"INSERT INTO {table} VALUES ({marks})", values)

    def tools(self) -> list[Tool]:
        """The tools, in the order of their names."""
        return [json.loads(json.dumps(item)) for item in TOOLS]

    def call(self, name: str, arguments: Any) -> str:
        """What a tool answers, as JSON."""
        try:
            answer = self._does[_known(name)](**_checked(name, arguments))
        except _Refused as refusal:
            answer = {"error": str(refusal)}
        return json.dumps(answer, separators=(",", ":"))

    def state(self) -> dict[str, list[Any]]:
        """The rows of every table, transfers without their time."""
        return {table: [list(row) for row in self._database.execute(query)] for table, query in _STATE.items()}

    def _freeze(self, card: int) -> dict[str, Any]:
        self._card(card)
        self._database.execute("UPDATE cards SET frozen = 1 WHERE id = ?", [card])
        return {"ok": True}

    def _limit(self, card: int, amount: int) -> dict[str, Any]:
        self._card(card)
        if not 0 <= amount <= MOST:
            raise _Refused("bad amount")
        self._database.execute("UPDATE cards SET limit_cents = ? WHERE id = ?", [amount * CENTS, card])
        return {"ok": True}

    def _show(self) -> dict[str, Any]:
        query = "SELECT name, id, cents, currency, status FROM accounts WHERE customer = ? ORDER BY id"
        accounts = {name: _account(*rest) for name, *rest in self._database.execute(query, [OWN])}
        query = "SELECT id, limit_cents, frozen FROM cards WHERE customer = ? ORDER BY id"
        cards = {
            str(card): {"limit": cents // CENTS, **({"frozen": True} if frozen else {})}
            for card, cents, frozen in self._database.execute(query, [OWN])
        }
        return {**accounts, "cards": cards}

    def _transfer(self, source: int, target: int, amount: int) -> dict[str, Any]:
        payer, payee = self._account(source, OWN), self._account(target, None)
        if source == target:
            raise _Refused("same account")
        if not 1 <= amount <= MOST:
            raise _Refused("bad amount")
        if "closed" in (payer[2], payee[2]):
            raise _Refused("account closed")
        if payer[1] != payee[1]:
            raise _Refused("other currency")
        cents = amount * CENTS
        if payer[0] < cents:
            raise _Refused("insufficient funds")
        change = "UPDATE accounts SET cents = cents + ? WHERE id = ?"
        self._database.executemany(change, [[-cents, source], [cents, target]])
        ledger = "INSERT INTO transfers (source, target, cents) VALUES (?, ?, ?)"
        self._database.execute(ledger, [source, target, cents])
        return {"ok": True}

    def _card(self, card: int) -> None:
        """Raises _Refused where the customer has no such card."""
        query = "SELECT 1 FROM cards WHERE id = ? AND customer = ?"
        if not -MOST <= card <= MOST or self._database.execute(query, [card, OWN]).fetchone() is None:
            raise _Refused("unknown card")

    def _account(self, account: int, customer: int | None) -> tuple[int, str, str]:
        """(cents, currency, status) of an account, of that customer where one is given. Raises _Refused."""
        query = "SELECT cents, currency, status FROM accounts WHERE id = ? AND customer = coalesce(?, customer)"
        known = -MOST <= account <= MOST
        found = self._database.execute(query, [account, customer]).fetchone() if known else None
        if found is None:
            raise _Refused("unknown account")
        return found


def world(seed: str) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table at the beginning, `transfers` left out: none is in it.

    The customer has checking, savings and, in half of the worlds, a travel account that may be closed or in euros;
    and two cards. Balances are whole units.
    """
    rng = random.Random(f"bank {seed}")
    ids = rng.sample(range(1000, 10000), 7)
    accounts = [
        (ids[0], OWN, "checking", "USD", rng.randint(100, 900) * CENTS, "open"),
        (ids[1], OWN, "savings", "USD", rng.randint(100, 900) * CENTS, "open"),
        (ids[2], OTHER, "checking", "USD", rng.randint(100, 900) * CENTS, "open"),
    ]
    if rng.random() < 0.5:
        currency, status = rng.choice([("USD", "open"), ("EUR", "open"), ("USD", "closed")])
        accounts.append((ids[3], OWN, "travel", currency, rng.randint(100, 900) * CENTS, status))
    cards = [(ids[4 + i], owner, rng.randint(1, 9) * 100 * CENTS, 0) for i, owner in enumerate((OWN, OWN, OTHER))]
    return {"customers": [(OWN, "Ada"), (OTHER, "Bo")], "accounts": accounts, "cards": cards}


def _account(account: int, cents: int, currency: str, status: str) -> dict[str, Any]:
    """What `show` tells; what is usual is left out."""
    shown: dict[str, Any] = {"id": account, "balance": cents // CENTS}
    if currency != "USD":
        shown["currency"] = currency
    if status != "open":
        shown["status"] = status
    return shown


def _known(name: Any) -> str:
    if not isinstance(name, str) or name not in _SCHEMAS:
        raise _Refused("unknown tool")
    return name


def _checked(name: str, arguments: Any) -> dict[str, int]:
    """The arguments, if they are what the tool takes. Raises _Refused; a boolean is no integer."""
    if not isinstance(arguments, Mapping):
        raise _Refused("arguments: expected an object")
    properties = _SCHEMAS[name]["properties"]
    for key in properties:
        if key not in arguments:
            raise _Refused(f"missing {key}")
        if type(arguments[key]) is not int:
            raise _Refused(f"{key}: expected an integer")
    if len(arguments) > len(properties):
        raise _Refused("unexpected argument")
    return dict(arguments)
