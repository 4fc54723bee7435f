"""A Python notebook in the sandbox: cells that work on a small table, and an answer that is handed in.

Each call is a program of its own that runs the cells so far and the new one: nothing lives between calls but their
texts, so that an episode is the same wherever its calls are made again.
"""

import atexit
import json
import os
import random
import re
import threading
import time
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.environments import cells
from pipelines.environments.environment import Tool
from pipelines.environments.texts import NOTHING, Refused, refusal, seed_of, text_of, text_tool
from pipelines.tasks.verdict import VerifierFailed

if TYPE_CHECKING:
    from pipelines.config.schema import Sandbox as Settings
    from pipelines.sandbox.sandbox import Sandbox

LONGEST = 4000  # characters of a cell
MOST_CELLS = 12  # of an episode, all of which the last one runs again
EPISODE_S = 1.5  # of programs, in one episode; the last one may take its own limit beyond
_ANSWER = 200  # characters
_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,15})?")
TOOLS = (
    text_tool("Run Python. Names stay; `rows` is a list of dicts, `data` its CSV.", "run", code="prints"),
    text_tool("Hand in.", "submit", answer="number or word"),
)
CITIES = ("Oslo", "Rome", "Bonn", "Lima")
_ITEMS = ("lamp", "chair", "desk", "shelf", "sofa", "rug", "clock", "vase", "bench", "stool", "mirror", "couch")


class Notebook:
    """The notebook of one episode. No call raises but where the sandbox fails: what is wrong is told as an error."""

    runs_programs = True

    def __init__(self) -> None:
        self._data = ""
        self._cells: list[str] = []
        self._answer: str | None = None
        self._failure: VerifierFailed | None = None
        self._left = EPISODE_S

    def reset(self, **row: Any) -> None:
        """Begins with the table of the row's seed, no cell and no answer. Raises DataError where it keeps no seed."""
        self._data = written(world(seed_of(row)))
        self._cells, self._answer, self._left, self._failure = [], None, EPISODE_S, None

    def tools(self) -> list[Tool]:
        """The tools, in the order of their names."""
        return [json.loads(json.dumps(item)) for item in TOOLS]

    def call(self, name: str, arguments: Any) -> str:
        """What a cell printed, or `{"ok":true}` for an answer."""
        try:
            if name == "run":
                return self._run(text_of(arguments, "code", LONGEST))
            if name == "submit":
                self._answer = canonical(text_of(_as_text(arguments), "answer", _ANSWER))
                return '{"ok":true}'
            raise Refused("unknown tool")
        except Refused as refused:
            return refusal(str(refused))

    def state(self) -> dict[str, str | None]:
        """The answer that was handed in last. Raises VerifierFailed where the sandbox failed in this episode."""
        if self._failure is not None:
            raise self._failure
        return {"answer": self._answer}

    def _run(self, cell: str) -> str:
        """A cell that a limit ended, or that ended its process, leaves nothing; one that failed leaves what it did."""
        if len(self._cells) == MOST_CELLS:
            raise Refused(f"no more than {MOST_CELLS} cells")
        if self._left <= 0:
            raise Refused("no time left in this episode")
        begun = time.monotonic()
        try:
            end, told = _told([*self._cells, cell], self._data)
        except VerifierFailed as failure:
            self._failure = failure
            raise
        self._left -= time.monotonic() - begun
        if told is None:
            raise Refused(end)
        self._cells.append(cell)
        if told.startswith("-"):
            error, _, printed = told[1:].partition("\n")
            return refusal(error, printed)
        return told[1:] or NOTHING

    @staticmethod
    def check() -> None:
        """Raises UserError where programs can't be isolated on this machine."""
        from pipelines.sandbox.sandbox import check_isolation

        check_isolation(_settings())


def canonical(answer: str) -> str:
    """An answer as it is compared: a number without signs and zeros that say nothing, a text in lower case."""
    text = answer.strip()
    if _NUMBER.fullmatch(text):
        return format((Decimal(text) + 0).normalize(), "f")
    return " ".join(text.lower().split())


def _as_text(arguments: Any) -> Any:
    """The arguments with a number told as text: models hand in numbers as such."""
    value = arguments.get("answer") if isinstance(arguments, dict) else None
    number = type(value) is float or (type(value) is int and abs(value) < 10**20)
    return {**arguments, "answer": str(value)} if number else arguments


def world(seed: str) -> list[dict[str, Any]]:
    """The table: fourteen rows of item, city, price and quantity. No two rows have the same item and city, and no two
    the same value (price times quantity).
    """
    rng = random.Random(f"notebook {seed}")
    pairs = rng.sample([(item, city) for item in _ITEMS for city in CITIES], 14)
    rows: list[dict[str, Any]] = []
    values = set[int]()
    for item, city in pairs:
        price, quantity = rng.randint(3, 95), rng.randint(1, 40)
        while price * quantity in values:
            price, quantity = rng.randint(3, 95), rng.randint(1, 40)
        values.add(price * quantity)
        rows.append({"item": item, "city": city, "price": price, "quantity": quantity})
    return rows


def written(rows: list[dict[str, Any]]) -> str:
    """The table as CSV."""
    return "\n".join(",".join(map(str, row)) for row in [list(rows[0]), *(row.values() for row in rows)]) + "\n"


# --- one sandbox for all episodes of a process --------------------------------------------------

_lock = threading.Lock()
_started: "list[tuple[int, Sandbox]]" = []


def _told(told: list[str], data: str) -> tuple[str, str | None]:
    """How the cells ended, and what the last said."""
    code = f"{_driver()}\n_told = run_cells({told!r}, {data!r})\n"
    with _lock:
        return _open().tell(code, "_told")


def _open() -> "Sandbox":
    """This process's sandbox: a fork must leave its parent's alone."""
    if not _started or _started[-1][0] != os.getpid():
        from pipelines.sandbox.sandbox import Sandbox

        _started[:] = [(os.getpid(), Sandbox(_settings()))]
        atexit.register(_close, os.getpid())
    return _started[-1][1]


def _close(process: int) -> None:
    if process == os.getpid() and _started:
        _started.pop()[1].close()


def _settings() -> "Settings":
    from pipelines.config.schema import Sandbox as Settings

    limits: dict[str, Any] = {"cpu_s": 1.0, "wall_s": 1.5, "memory_mb": 128, "output_kb": 16, "processes": 1}
    return Settings(backend="bubblewrap", url=None, allow_unsandboxed=False, fresh_namespaces=True, **limits)


@lru_cache(maxsize=1)
def _driver() -> str:
    return Path(cells.__file__).read_text(encoding="utf-8")
