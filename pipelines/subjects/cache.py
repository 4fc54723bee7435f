"""Answers that were paid for, on disk: none is asked for twice, whatever killed the run that asked."""

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pipelines.errors import UserError

FILE = "answers.sqlite"
BUSY_S = 60.0
_TRIES = 50  # SQLite's own patience doesn't cover the first switch to a write-ahead log
_SCHEMA = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, finished INTEGER NOT NULL,
    prompt_tokens INTEGER, num_tokens INTEGER, cost REAL, asked_at REAL NOT NULL
) WITHOUT ROWID"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a request, and what it cost in US dollars; None where that isn't known."""

    text: str
    finished: bool
    prompt_tokens: int | None
    num_tokens: int | None
    cost: float | None


def key_of(address: str, body: Mapping[str, Any], number: int) -> str:
    """sha256 over who is asked, what, how, and the number of the try; a key of an API is no part of it."""
    asked = ("model", "messages", "tools", "max_tokens", "temperature", "seed")
    told = [address, {name: body.get(name) for name in asked}, number]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class Cache(AbstractContextManager["Cache"]):
    """One SQLite file in a folder, which processes may share; `field` is what the configuration calls it.

    An answer is there as soon as `put` returns: a process that is killed afterwards has it. Raises UserError where
    the folder can't be written, or holds another kind of file.
    """

    def __init__(self, folder: Path, field: str) -> None:
        self.path, self._field = folder / FILE, field
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            self._open = sqlite3.connect(self.path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
            self._begin()

    def _begin(self) -> None:
        for attempt in range(_TRIES):
            try:
                self._open.execute("PRAGMA journal_mode=WAL")
                self._open.execute("PRAGMA synchronous=NORMAL")
                self._open.execute(_SCHEMA)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or attempt == _TRIES - 1:
                    raise
                time.sleep(0.1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def __len__(self) -> int:
        with self._told():
            return int(self._open.execute("SELECT count(*) FROM answers").fetchone()[0])

    def find(self, key: str) -> Answer | None:
        """The answer that lies there; None where none does."""
        with self._told():
            found = self._open.execute(
                "SELECT text, finished, prompt_tokens, num_tokens, cost FROM answers WHERE key = ?", (key,)
            ).fetchone()
        return Answer(found[0], bool(found[1]), *found[2:]) if found else None

    def put(self, key: str, answer: Answer) -> None:
        """Keeps an answer; where another process was first, its answer stays."""
        held = (key, answer.text, answer.finished, answer.prompt_tokens, answer.num_tokens, answer.cost, time.time())
        with self._told():
            self._open.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", held)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise UserError(f"{self._field}: {self.path} can't be used as a cache of answers: {error}") from error
