"""A small shop in SQLite: customers, items and orders, which the model reads and changes with SQL of its own.

What a statement may do is decided by SQLite while it compiles it (its authorizer), and how much by counting the steps
of its virtual machine: not by time, so that a statement ends in the same way wherever it is made again.
"""

import json
import random
import re
import sqlite3
from collections.abc import Callable
from typing import Any

from pipelines.environments.environment import Tool
from pipelines.environments.texts import Refused, refusal, seed_of, shortened, text_of, text_tool

LONGEST = 1000  # characters of a statement
MOST_ROWS = 20  # of an answer
MOST_TEXT = 1000  # characters of an answer
_EVERY = 1000  # steps of SQLite's virtual machine, in which work is counted: a look through all tables takes one or two
_STATEMENT, _EPISODE = 40, 120  # of these, for a statement and for an episode
_PAGES = 64  # of 4 KiB: the whole database
_NAMES = ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal", "Ivy", "Jo")
_CITIES = ("Oslo", "Rome", "Bonn")
_ITEMS = ("lamp", "chair", "desk", "shelf", "sofa", "rug", "clock", "vase", "bench", "stool")
STATUSES = ("open", "shipped", "cancelled")

_TABLES = """
CREATE TABLE customers (name TEXT PRIMARY KEY, city TEXT NOT NULL);
CREATE TABLE items (
    name TEXT PRIMARY KEY, price INTEGER NOT NULL, stock INTEGER NOT NULL CHECK (stock >= 0)
);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY, customer TEXT NOT NULL, item TEXT NOT NULL,
    quantity INTEGER NOT NULL CHECK (quantity > 0), status TEXT NOT NULL DEFAULT 'open'
);
CREATE TABLE totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_STATE = {
    "customers": "SELECT name, city FROM customers ORDER BY name",
    "items": "SELECT name, price, stock FROM items ORDER BY name",
    "orders": "SELECT id, customer, item, quantity, status FROM orders ORDER BY id",
    "totals": "SELECT name, value FROM totals ORDER BY name",
}
TOOLS = (
    text_tool("Change rows.", "execute", sql="INSERT, UPDATE or DELETE"),
    text_tool(
        "Read customers(name,city), items(name,price,stock), orders(id,customer,item,quantity,status), "
        "totals(name,value).",
        "query",
        sql="SELECT",
    ),
)
_BEGIN = {
    "execute": re.compile(r"\s*(insert|replace|update|delete|with)\b", re.IGNORECASE),
    "query": re.compile(r"\s*(select|with)\b", re.IGNORECASE),
}
# No clock, no chance, no reading of SQLite's own state; nothing whose result is longer than its arguments by much.
_FUNCTIONS = frozenset(
    {
        "abs", "avg", "coalesce", "count", "dense_rank", "first_value", "glob", "group_concat", "ifnull",
        "iif", "instr", "lag", "last_value", "lead", "length", "like", "lower", "ltrim", "max", "min",
        "ntile", "nullif", "rank", "replace", "round", "row_number", "rtrim", "sign", "substr", "substring",
        "sum", "total", "trim", "typeof", "upper"
    }
)  # fmt: skip
_READS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)
_WRITES = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1000,  # bytes of a value, and of a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4 * LONGEST,
    sqlite3.SQLITE_LIMIT_COLUMN: 32,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 8,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 5000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}


class Database:
    """The shop of one episode, in memory. No call raises: what is wrong is told as `{"error": ...}`."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None
        self._first: frozenset[int] = frozenset()
        self._left = self._work = 0

    def reset(self, **row: Any) -> None:
        """Fills the tables from the row's seed. Raises DataError where the row keeps none."""
        tables = world(seed_of(row))
        if self._database is not None:
            self._database.close()
        self._database = base = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        base.text_factory = lambda told: told.decode(errors="replace")  # a cast makes texts of any bytes
        base.executescript(f"PRAGMA temp_store = MEMORY; PRAGMA max_page_count = {_PAGES}; {_TABLES}")
        for table, values in tables.items():
            marks = ", ".join("?" * len(values[0]))
            base.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
        for limit, most in _LIMITS.items():
            base.setlimit(limit, most)
        self._first = frozenset(order[0] for order in tables["orders"])
        self._left = _EPISODE

    def tools(self) -> list[Tool]:
        """The tools, in the order of their names."""
        return [json.loads(json.dumps(item)) for item in TOOLS]

    def call(self, name: str, arguments: Any) -> str:
        """What a tool answers: a query's rows or `{"changed": n}`, as JSON."""
        try:
            if name not in _BEGIN:
                raise Refused("unknown tool")
            sql = text_of(arguments, "sql", LONGEST)
            if not _BEGIN[name].match(sql):
                raise Refused("expected INSERT, UPDATE or DELETE" if name == "execute" else "expected SELECT")
            answer = self._queried(sql) if name == "query" else self._executed(sql)
        except Refused as refused:
            return refusal(str(refused))
        except (sqlite3.Error, sqlite3.Warning) as error:
            return refusal(shortened(_told(error), 100))
        return answer

    def state(self) -> dict[str, list[Any]]:
        """The rows of every table; orders that were added have 0 for the number, which is the model's to choose."""
        told = {table: [_plain(row) for row in self._open().execute(query)] for table, query in _STATE.items()}
        told["orders"] = sorted(
            ([row[0] if row[0] in self._first else 0, *row[1:]] for row in told["orders"]), key=repr
        )
        return told

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise Refused("no episode")
        return self._database

    def _queried(self, sql: str) -> str:
        rows = self._made(sql, _READS)
        told = json.dumps(rows[:MOST_ROWS], separators=(",", ":"), ensure_ascii=False)
        return shortened(told, MOST_TEXT) + (" (more rows)" if len(rows) > MOST_ROWS else "")

    def _executed(self, sql: str) -> str:
        before = self._open().total_changes
        self._made(sql, _READS + _WRITES)
        return json.dumps({"changed": self._open().total_changes - before}, separators=(",", ":"))

    def _made(self, sql: str, actions: tuple[int, ...]) -> list[list[Any]]:
        """The rows of one statement, one more than are told. A new authorizer is asked about cached statements, too."""
        base = self._open()
        if self._left <= 0:
            raise Refused("too much work in this episode")
        most = min(_STATEMENT, self._left)
        base.set_authorizer(_authorizer(actions))
        base.set_progress_handler(lambda: self._worked() >= most, _EVERY)
        self._work = 0
        cursor = base.cursor()
        try:
            cursor.execute(sql)
            return [_plain(row) for row in cursor.fetchmany(MOST_ROWS + 1)]
        finally:
            cursor.close()
            base.set_progress_handler(None, 0)
            base.set_authorizer(None)
            self._left -= self._work

    def _worked(self) -> int:
        self._work += 1
        return self._work


def _authorizer(actions: tuple[int, ...]) -> Callable[..., int]:
    def allows(action: int, first: str | None, second: str | None, base: str | None, trigger: str | None) -> int:
        if action not in actions:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_FUNCTION:
            known = str(second).lower() in _FUNCTIONS
        elif action == sqlite3.SQLITE_SELECT:
            known = True
        else:
            known = first in _STATE or (action == sqlite3.SQLITE_READ and first in ("sqlite_master", "sqlite_schema"))
        return sqlite3.SQLITE_OK if known else sqlite3.SQLITE_DENY

    return allows


def _told(error: Exception) -> str:
    """SQLite's own words; what it says of an interrupt is ours to explain."""
    return "too much work" if str(error) == "interrupted" else str(error)


def _plain(row: tuple[Any, ...]) -> list[Any]:
    return [f"x'{value.hex()}'" if isinstance(value, bytes) else value for value in row]


def world(seed: str) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table at the beginning, `totals` left out: none is in it.

    Six customers in three cities, six items, twelve orders; no two orders have the same customer and item.
    """
    rng = random.Random(f"database {seed}")
    names, items = rng.sample(_NAMES, 6), rng.sample(_ITEMS, 6)
    customers = [(name, rng.choice(_CITIES)) for name in names]
    goods = [(item, rng.randint(5, 60), rng.randint(0, 20)) for item in items]
    pairs = rng.sample([(name, item) for name in names for item in items], 12)
    ids = rng.sample(range(100, 1000), 12)
    orders = [(ids[i], *pair, rng.randint(1, 9), rng.choice(STATUSES)) for i, pair in enumerate(pairs)]
    return {"customers": customers, "items": goods, "orders": orders}
