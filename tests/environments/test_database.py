"""The shop's database: what statements may do, what they may not, and rows whose states are worked out without SQL."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.environments import replay, resolve_environment
from pipelines.environments.calls import transcript
from pipelines.environments.database import Database, world
from pipelines.environments.database_rows import KINDS, generate
from pipelines.environments.environment import Environment, digest
from pipelines.environments.episode import play
from pipelines.environments.tools import environment_class
from pipelines.errors import DataError, UserError
from tests.environments.attacking import rows, spoiled, task, teacher


@pytest.fixture
def database() -> Database:
    made = Database()
    made.reset(kept={"environment_seed": "1"})
    return made


def answer(database: Database, name: str, sql: Any) -> Any:
    return json.loads(database.call(name, {"sql": sql}))


def test_it_is_an_environment(database: Database) -> None:
    assert isinstance(database, Environment)
    assert [tool["function"]["name"] for tool in database.tools()] == ["execute", "query"]


def test_statements_read_and_change_what_is_there(database: Database) -> None:
    first = world("1")["orders"][0]
    assert answer(database, "query", f"SELECT customer, quantity FROM orders WHERE id={first[0]}") == [
        [first[1], first[3]]
    ]
    assert answer(database, "execute", f"UPDATE orders SET quantity=77 WHERE id={first[0]}") == {"changed": 1}
    assert [first[0], first[1], first[2], 77, first[4]] in database.state()["orders"]
    assert answer(database, "execute", "DELETE FROM orders") == {"changed": 12}
    assert answer(
        database, "execute", "INSERT INTO orders VALUES (5,'Ada','lamp',2,'open'),(9,'Bo','rug',1,'open')"
    ) == {"changed": 2}
    assert database.state()["orders"] == [[0, "Ada", "lamp", 2, "open"], [0, "Bo", "rug", 1, "open"]]


@pytest.mark.parametrize(
    ("name", "sql"),
    [
        ("query", "DELETE FROM orders"),
        ("query", "WITH x AS (SELECT 1) DELETE FROM orders"),
        ("query", "SELECT random()"),
        ("query", "SELECT id FROM orders ORDER BY RANDOM()"),
        ("query", "SELECT datetime('now')"),
        ("query", "SELECT CURRENT_TIMESTAMP"),
        ("query", "SELECT load_extension('x')"),
        ("query", "SELECT zeroblob(1000000000)"),
        ("query", "SELECT printf('%.*c', 100000000, 'x')"),
        ("query", "SELECT * FROM pragma_table_info('orders')"),
        ("query", "PRAGMA writable_schema = 1"),
        ("query", "EXPLAIN SELECT 1"),
        ("query", "SELECT ?"),
        ("query", "SELECT " + "(" * 300 + "1" + ")" * 300),
        ("query", "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT count(*) FROM c"),
        ("query", "SELECT group_concat(a.status || b.status) FROM orders a, orders b, orders c"),
        (
            "query",
            "SELECT count(*) FROM orders a, orders b, orders c, orders d, orders e WHERE a.id+b.id+c.id+d.id+e.id>1",
        ),
        ("query", "x" * 2000),
        ("query", "SELECT '\ud800'"),
        ("query", "SELECT '\0'"),
        ("query", None),
        ("query", ["SELECT 1"]),
        ("execute", "SELECT 1"),
        ("execute", "ATTACH '{folder}/made.db' AS x"),
        ("execute", "VACUUM INTO '{folder}/made.db'"),
        ("execute", "DROP TABLE orders"),
        ("execute", "ALTER TABLE orders ADD COLUMN x"),
        ("execute", "CREATE TRIGGER t AFTER INSERT ON orders BEGIN DELETE FROM orders; END"),
        ("execute", "BEGIN"),
        ("execute", "UPDATE sqlite_master SET sql='x'"),
        ("execute", "INSERT INTO sqlite_schema VALUES (1,2,3,4,5)"),
        ("execute", "INSERT INTO totals VALUES ('a', 1); DROP TABLE orders"),
        (
            "execute",
            "INSERT INTO totals SELECT a.id||'-'||b.id||'-'||c.id||d.id, 1 FROM orders a, orders b, orders c, orders d",
        ),
        ("execute", "UPDATE orders SET quantity = 0"),
        ("execute", "UPDATE orders SET quantity = random()"),
        ("drop", "SELECT 1"),
    ],
)
def test_what_is_refused_is_told_in_short_and_changes_nothing(
    database: Database, tmp_path: Path, name: str, sql: Any
) -> None:
    before = database.state()
    told = database.call(name, {"sql": sql.replace("{folder}", str(tmp_path)) if isinstance(sql, str) else sql})
    assert set(json.loads(told)) == {"error"}
    assert len(told) < 160
    assert database.state() == before
    assert not list(tmp_path.iterdir())


def test_answers_and_the_work_of_an_episode_are_bounded(database: Database) -> None:
    told = database.call("query", {"sql": "SELECT a.* FROM orders a, orders b"})
    assert len(told) < 1100
    assert told.endswith("(more rows)")
    bomb = {
        "sql": "SELECT count(*) FROM orders a, orders b, orders c, orders d, orders e WHERE a.id+b.id+c.id+d.id>e.id"
    }
    errors = [json.loads(database.call("query", bomb))["error"] for _ in range(4)]
    assert errors == ["too much work"] * 3 + ["too much work in this episode"]
    database.reset(kept={"environment_seed": "1"})
    assert answer(database, "query", "SELECT count(*) FROM orders") == [[12]]


def test_values_of_any_kind_have_a_state(database: Database) -> None:
    assert answer(database, "execute", "INSERT INTO totals VALUES (CAST(X'ff' AS TEXT), 9e999), (X'ab', -1)")
    assert database.state()["totals"] == [["\N{REPLACEMENT CHARACTER}", float("inf")], ["x'ab'", -1]]
    assert len(digest(database.state())) == 16


def test_a_row_without_a_seed_is_named() -> None:
    with pytest.raises(DataError, match=r"^database@1:7: kept holds no environment_seed"):
        Database().reset(kept={}, source="database@1:7")


def right_state(question: str, seed: str) -> dict[str, list[Any]]:
    """What the sentence asks for, read by patterns and done on the tables by hand, without SQL."""
    tables = {name: [list(row) for row in values] for name, values in world(seed).items()}
    price, city = {row[0]: row[1] for row in tables["items"]}, dict(tables["customers"])
    numbers = [int(number) for number in re.findall(r"\b\d+", question)]
    items = [row for row in tables["items"] if row[0] in question]
    names = [name for name in city if re.search(rf"\b{name}\b", question)]
    orders, totals = tables["orders"], []
    if "totals" in question or "Total" in question:
        own = [row for row in orders if row[1] == names[0] and row[4] == "open"]
        totals = [[re.findall(r"t\d+", question)[0], sum(price[row[2]] * row[3] for row in own)]]
    elif "stock" in question:
        below, more = numbers if question.startswith("If") else numbers[::-1]
        items[0][2] += more * (items[0][2] < below)
    elif "rices" in question or "dearer" in question:
        for row in tables["items"]:
            row[1] += numbers[1] * (row[1] >= numbers[0])
    elif question.startswith(("Delete", "Remove")):
        status = next(word for word in ("open", "shipped", "cancelled") if word in question)
        gone = [
            r for r in orders if r[4] == status and r[3] >= numbers[0] and (r[1] in names or city[r[1]] in question)
        ]
        orders = [row for row in orders if row not in gone]
    elif "instead" in question or question.startswith("Change"):
        next(row for row in orders if row[1] == names[0] and row[2] == items[0][0])[3] = numbers[0]
    elif "Mark" in question or re.match(r"(Set o|O)rder \d+ (to|is)", question):
        next(row for row in orders if row[0] == numbers[0])[4] = question.rstrip(".").split()[-1]
    elif items[0][2] >= numbers[0]:
        orders = [*orders, [0, names[0], items[0][0], numbers[0], "open"]]
    sides = {name: sorted(tables[name]) for name in ("customers", "items")}
    return {**sides, "orders": sorted(orders, key=repr), "totals": totals}


def test_the_answers_are_what_another_reading_of_the_questions_gives() -> None:
    records = list(generate(320, 3, {}))
    assert {record["label"] for record in records} == set(KINDS)
    for record in records:
        state = right_state(record["messages"][0]["content"], record["environment_seed"])
        assert record["answer"] == digest(state), record["messages"]


def test_demonstrations_verify_and_others_do_not() -> None:
    shop = task("database")
    verify, audit = replay.verifier(shop), replay.strict(shop)
    asked = rows("database", generate(80, 4, {}))
    for row in asked:
        own = transcript(row.completion)
        assert verify(own, row).correct
        assert audit(own, row).correct
        assert '"error"' not in own
        if (row.kept or {})["goal"] != "[]":
            assert not verify(spoiled(row), row).correct
            assert not verify("Done.", row).correct
        other = asked[(int(row.id) + 1) % len(asked)]
        assert not verify(own, other).correct or (other.kept or {})["goal"] == "[]"


def test_a_teacher_plays_many_at_once() -> None:
    asked = rows("database", generate(16, 5, {}))
    episodes = play(asked, teacher(asked), environment_class("database"), max_turns=6)
    verify = replay.verifier(task("database"))
    assert all(episode.finished and not episode.num_failed for episode in episodes)
    assert all(verify(episode.text or "", row).correct for episode, row in zip(episodes, asked, strict=True))
    assert [episode.messages for episode in episodes] == [row.completion for row in asked]


@pytest.mark.parametrize("name", ["database", "notebook", "shell"])
def test_grpo_takes_their_tools_as_they_are(name: str) -> None:
    """TRL makes the schemas anew, from the public methods that a class has beside `reset`."""
    from transformers.utils import get_json_schema

    made = environment_class(name)()
    methods = [method for key, method in inspect.getmembers(made, inspect.ismethod) if not key.startswith("_")]
    schemas = [get_json_schema(method) for method in methods if method.__name__ != "reset"]
    assert schemas == resolve_environment(name)().tools()


def test_questions_differ_and_settings_choose_kinds() -> None:
    first = [record["messages"][0]["content"] for record in generate(400, 1, {})]
    second = [record["messages"][0]["content"] for record in generate(100, 2, {})]
    assert len(set(first)) == 400
    assert len(set(first) & set(second)) < 10
    assert {record["label"] for record in generate(6, 1, {"kinds": ["if", "add"]})} == {"if", "add"}
    with pytest.raises(UserError, match=r"settings: kinds: expected change, find.*got 'adds'.*add"):
        next(generate(1, 1, {"kinds": ["adds"]}))
    with pytest.raises(UserError, match="settings: database knows kinds, got 'kind'"):
        next(generate(1, 1, {"kind": ["add"]}))
