"""A query's rows from a real database; nothing is written there, and no password reaches a message."""

import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects
from pipelines.dataset.read import read_source
from pipelines.errors import Unreachable, UserError
from tests.dataset.conftest import ReadSource, lines_of

MakeSource = Callable[..., Source]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database of 2,500 tickets."""
    with sqlite3.connect(tmp_path / "tickets.db") as database:
        database.execute("create table tickets (id integer, question text, opened timestamp, blob blob)")
        rows = ((n, f"100% of :{n}?", "2026-01-01 12:00:00", None) for n in range(2500))
        database.executemany("insert into tickets values (?, ?, ?, ?)", rows)
    return f"sqlite:///{tmp_path / 'tickets.db'}"


def failure(make_source: MakeSource, url: str, sql: str = "SELECT 1 AS a") -> str:
    """The message of the UserError that reading ends with."""
    with pytest.raises(UserError) as error:
        list(read_source(make_source(sql=sql, url=url), Defects(5), 1000))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_rows_come_in_the_order_of_the_query(read_all: ReadSource, url: str) -> None:
    query = "SELECT id, question AS prompt, opened FROM tickets WHERE question LIKE '%:%' ORDER BY id DESC"
    records, defects = read_all(sql=query, url=url, prompt="prompt")
    assert defects == []
    assert lines_of(records) == list(range(1, 2501))
    assert records[0].fields == {"id": 2499, "prompt": "100% of :2499?", "opened": "2026-01-01 12:00:00"}
    assert records[0].place.path == "sql:probe"


def test_a_url_may_come_from_the_environment(
    read_all: ReadSource, make_source: MakeSource, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKETS", url)
    assert len(read_all(sql="-- newest\nselect * from tickets", url="env:TICKETS")[0]) == 2500
    assert failure(make_source, "env:TICKET") == "url: the environment variable TICKET isn't set"
    monkeypatch.setenv("TICKETS", "hunter2@nowhere")
    assert failure(make_source, "env:TICKETS") == "url: expected a database URL such as sqlite:///rows.db, in TICKETS"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@127.0.0.1/db",
        "mysql+pymysql://127.0.0.1/db?password=hunter2",
        "postgresql://127.0.0.1/db?sslpassword=hunter2",
    ],
)
def test_a_password_in_the_configuration_is_refused_and_never_shown(make_source: MakeSource, url: str) -> None:
    message = failure(make_source, url)
    assert message == "url: it holds a password, which would be kept with every run; write url: env:NAME instead"


def test_a_password_from_the_environment_is_in_no_message(
    make_source: MakeSource, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE", url + "?cache=tickets&secret_token=hunter2")
    assert "hunter2" not in failure(make_source, "env:DATABASE")
    monkeypatch.setenv("DATABASE", "nosuchdb://me:hunter2@127.0.0.1/db")
    assert failure(make_source, "env:DATABASE") == "url: SQLAlchemy knows no database 'nosuchdb'"
    monkeypatch.setenv("DATABASE", "mssql+pymssql://me:hunter2@127.0.0.1/db")
    assert failure(make_source, "env:DATABASE") == "url: mssql+pymssql needs its driver; pip install pymssql"


def test_the_database_is_only_read(make_source: MakeSource, url: str, tmp_path: Path) -> None:
    assert failure(make_source, url, "DELETE FROM tickets").startswith(
        "sql: expected a query that reads (SELECT, WITH,"
    )
    hidden = "WITH old AS (SELECT 1) INSERT INTO tickets (id) SELECT 1 RETURNING id"
    assert failure(make_source, url, hidden) == "sql: attempt to write a readonly database"
    absent = tmp_path / "absent.db"
    assert failure(make_source, f"sqlite:///{absent}") == f"url: no such file {absent}"
    assert not absent.exists()


def test_a_wrong_query_is_told_as_the_database_tells_it(make_source: MakeSource, url: str) -> None:
    assert failure(make_source, url, "SELECT answer FROM tickets") == "sql: no such column: answer"
    assert failure(make_source, url, "SELEC 1").endswith("got one that starts with 'SELEC'")


def test_columns_are_checked_once(read_all: ReadSource, url: str) -> None:
    assert read_all(sql="SELECT id, question FROM tickets", url=url, prompt="questoin")[1] == [
        "sql:probe: no column 'questoin'; the result has 'id', 'question'; nearest valid name: question"
    ]
    twice = "SELECT a.question, a.id, b.id FROM tickets a JOIN tickets b ON a.id = b.id"
    assert read_all(sql=twice, url=url, prompt="question") == ([], ["sql:probe: column 'id' occurs 2 times"])


def test_values_without_a_place_in_json_are_defects_of_their_rows(read_all: ReadSource, url: str) -> None:
    query = "SELECT id, CASE id WHEN 1 THEN x'00ff' END AS file FROM tickets ORDER BY id LIMIT 3"
    records, defects = read_all(sql=query, url=url)
    assert lines_of(records) == [1, 3]
    assert defects == ["sql:probe:2: 'file' is binary (2 bytes), expected text"]


def test_a_file_that_is_no_database_is_told(make_source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "rows.db").write_text("query,label\n" * 100)
    assert failure(make_source, f"sqlite:///{tmp_path}/rows.db", "SELECT a FROM b") == "sql: file is not a database"


def test_a_database_that_does_not_answer_is_unreachable(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pg8000")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("DATABASE", f"postgresql+pg8000://me:hunter2@127.0.0.1:{port}/db")
    with pytest.raises(Unreachable) as error:
        list(read_source(make_source(sql="SELECT 1", url="env:DATABASE"), Defects(5), 1000))
    assert str(error.value).startswith("url: postgresql at 127.0.0.1 doesn't answer: ")
    assert "hunter2" not in str(error.value)
