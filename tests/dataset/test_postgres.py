"""A query to a real PostgreSQL server, started for the test on loopback; skipped where none is installed."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.dataset.defects import Defects
from pipelines.dataset.read import read_source
from pipelines.errors import UserError
from tests.dataset.conftest import MakeSource

FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
BIN = FOUND[-1].parent if FOUND else Path(shutil.which("initdb") or "/nowhere/initdb").parent

pytestmark = pytest.mark.skipif(not (BIN / "initdb").exists(), reason="no PostgreSQL server is installed")

TABLE = """
create table asked (id int, query text, label text, price numeric, at timestamptz, meta jsonb, raw bytea);
insert into asked select n, 'question ' || n, 'label ' || n % 3, n / 4.0,
    timestamptz '2026-01-01 00:00+00' + n * interval '1 hour', jsonb_build_object('n', n), null
    from generate_series(1, 2500) n;
"""


def as_owner(*command: str | Path) -> list[str]:
    """The server refuses to run as root."""
    words = [str(word) for word in command]
    return ["runuser", "-u", "postgres", "--", *words] if getpass.getuser() == "root" else words


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database with a table, its password left out."""
    folder = tmp_path_factory.mktemp("postgres")
    if getpass.getuser() == "root":
        for path in (folder, *list(folder.parents)[:2]):
            path.chmod(0o755)
        shutil.chown(folder, "postgres")
    (folder.parent / "password").write_text("hunter2\n")
    (folder.parent / "password").chmod(0o644)
    secret = f"--pwfile={folder.parent / 'password'}"
    made = as_owner(BIN / "initdb", "-D", folder / "data", "-U", "me", "-A", "scram-sha-256", secret)
    subprocess.run(made, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-p", str(port)]
    server = subprocess.Popen(as_owner(BIN / "postgres", "-D", folder / "data", *options), stderr=subprocess.DEVNULL)
    try:
        environment = {**os.environ, "PGPASSWORD": "hunter2"}
        psql = [str(BIN / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "me", "-d", "postgres", "-q", "-c", TABLE]
        for _ in range(100):
            if not subprocess.run(psql, env=environment, capture_output=True, check=False).returncode:
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the server doesn't answer")
        yield f"postgresql+pg8000://me:hunter2@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(autouse=True)
def _url(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE", database)


def test_rows_stream_in_the_querys_order_with_plain_values(make_source: MakeSource) -> None:
    source = make_source(sql="select * from asked order by id desc", url="env:DATABASE", prompt="query")
    records = list(read_source(source, Defects(5), 1_000_000, name="mine"))
    assert [record.fields["id"] for record in records] == list(range(2500, 0, -1))
    assert str(records[0].place) == "sql:mine:1"
    assert records[-1].fields == {
        "id": 1,
        "query": "question 1",
        "label": "label 1",
        "price": 0.25,
        "at": "2026-01-01T01:00:00+00:00",
        "meta": {"n": 1},
        "raw": None,
    }


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("select quer from asked", 'column "quer" does not exist'),
        ("delete from asked returning *", "expected a query that reads"),
        ("with gone as (delete from asked returning *) select * from gone", "data-modifying statements"),
    ],
)
def test_what_a_query_cant_do_is_one_message_without_the_password(
    make_source: MakeSource, query: str, reason: str
) -> None:
    with pytest.raises(UserError) as error:
        list(read_source(make_source(sql=query, url="env:DATABASE"), Defects(5), 1000))
    assert reason in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_wrong_password_is_said_without_it(
    make_source: MakeSource, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE", database.replace("hunter2", "letmein"))
    with pytest.raises(UserError) as error:
        list(read_source(make_source(sql="select 1", url="env:DATABASE"), Defects(5), 1000))
    assert "password authentication failed" in str(error.value)
    assert "letmein" not in str(error.value)
