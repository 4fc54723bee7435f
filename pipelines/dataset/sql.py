"""The result of a query, row by row as the database gives it; nothing is ever written."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from pipelines.config.paths import resolve
from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects, Place
from pipelines.dataset.record import Record, column_reasons, plain_records, wanted_columns
from pipelines.errors import Unreachable, UserError

_ENVIRONMENT = "env:"
_SECRET = re.compile("pass|pwd|secret|token|key", re.IGNORECASE)
_LEADING = re.compile(r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(\w*)", re.DOTALL)
_READING = ("SELECT", "WITH", "VALUES", "TABLE", "FROM")
_SILENT = re.compile(r"refused|timed? ?out|unreachable|can't connect|could not (?:connect|translate)|no route", re.I)
_AT_ONCE = 1000


def sql_records(source: Source, defects: Defects, name: str) -> Iterator[Record]:
    """The rows of the query's result, numbered from 1 at `sql:<name>`.

    Raises UserError where the URL, its driver, the login or the query is wrong, Unreachable where the database
    doesn't answer. No message holds a password.
    """
    query = str(source.sql)
    _check_query(query)
    url = _url(str(source.url))
    with _connected(url) as connection:
        with _asking(url, "sql"):
            result = connection.exec_driver_sql(query)
            columns = list(result.keys())
        # Of two columns of one name a mapping keeps the last, whether it is wanted or not.
        reasons = column_reasons(columns, wanted_columns(source), "the result") or column_reasons(columns, [], "it")
        for reason in reasons:
            defects.add(Place(f"sql:{name}"), reason)
        if not reasons:
            yield from plain_records(_rows(result, columns, url), lambda row: Place(f"sql:{name}", row), defects)


def _rows(result: Any, columns: list[str], url: Any) -> Iterator[Mapping[str, Any]]:
    while True:
        with _asking(url, "sql"):
            rows = result.fetchmany(_AT_ONCE)
        if not rows:
            return
        yield from (dict(zip(columns, row, strict=True)) for row in rows)


def _check_query(query: str) -> None:
    """A statement that isn't there to read is refused before a database is asked."""
    found = _LEADING.match(query)
    first = found.group(1) if found else ""
    if first.upper() not in _READING:
        raise UserError(f"sql: expected a query that reads ({', '.join(_READING)}), got one that starts with {first!r}")


def _url(given: str) -> Any:
    """The URL, from the environment where it says so.

    Raises UserError where it is none, or where one that is written out holds a password: the configuration is
    kept with every run.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from_environment = given.startswith(_ENVIRONMENT)
    variable = given.removeprefix(_ENVIRONMENT)
    text = os.environ.get(variable) if from_environment else given
    if text is None:
        raise UserError(f"url: the environment variable {variable} isn't set")
    where = f"in {variable}" if from_environment else f"got {given.partition('://')[0][:20]}..."
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise UserError(f"url: expected a database URL such as sqlite:///rows.db, {where}") from None
    if not from_environment and (url.password is not None or any(map(_SECRET.search, url.query))):
        raise UserError("url: it holds a password, which would be kept with every run; write url: env:NAME instead")
    return _read_only(url)


def _read_only(url: Any) -> Any:
    """SQLite would make a file that isn't there."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return url
    path = resolve(url.database)
    if not path.is_file():
        raise UserError(f"url: no such file {path}")
    return url.set(database=f"file:{quote(str(path))}").update_query_dict({"mode": "ro", "uri": "true"})


@contextmanager
def _connected(url: Any) -> Iterator[Any]:
    """A connection whose results are streamed and that commits nothing."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    except NoSuchModuleError:
        raise UserError(f"url: SQLAlchemy knows no database {url.drivername!r}") from None
    except ModuleNotFoundError as error:
        raise UserError(f"url: {url.drivername} needs its driver; pip install {error.name}") from None
    except (ArgumentError, TypeError) as error:
        raise UserError(f"url: {_without_secrets(error, url)}") from None
    with _asking(url, "url"):
        connection = engine.connect()
    with connection:
        # Without parameters a % in the query is a %, whatever the driver.
        options = {"stream_results": True, "yield_per": _AT_ONCE, "no_parameters": True}
        if url.get_backend_name() == "postgresql":
            options["postgresql_readonly"] = True
        yield connection.execution_options(**options)
        connection.rollback()


@contextmanager
def _asking(url: Any, field: str) -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        reason = _without_secrets(getattr(error, "orig", None) or error, url)
        if field == "url" and _SILENT.search(reason):
            raise Unreachable(f"url: {url.get_backend_name()} at {url.host} doesn't answer: {reason}") from None
        raise UserError(f"{field}: {reason}") from None


def _without_secrets(error: BaseException, url: Any) -> str:
    """The error's first line without the password and any secret of the URL's query."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    secrets = [url.password, *(value for name, value in url.query.items() if _SECRET.search(name))]
    for secret in secrets:
        for value in [secret] if isinstance(secret, str) else secret or ():
            reason = reason.replace(value, "***") if value else reason
    return reason
