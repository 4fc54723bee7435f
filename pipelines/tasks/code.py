"""Python problems: an answer is right if its program passes the row's tests, in a sandbox.

A program can't tell a test that it was shown from one that it was not, so a prompt that keeps one back makes writing
down the shown results worthless: the shipped MBPP shows all tests but the last, and every verdict is over all of them.
"""

import ast
import atexit
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

from pipelines.config import schema
from pipelines.dataset.row import Row
from pipelines.errors import DataError
from pipelines.tasks.verdict import Verdict, Verify

TESTS, SETUP, CHALLENGE = "tests", "setup", "challenge_tests"  # what the source keeps with a row
_FENCE = "```"
_PYTHON = ("python", "python3", "py")
_LONGEST = 50_000  # characters of a program; the problems take some hundred


def verifier(task: schema.Task, sandbox: schema.Sandbox) -> Verify:
    """A verify that runs the answer's program with the row's `tests`, which `setup` stands before.

    What a row keeps: `tests` is a JSON list of asserts, `setup` code that they need, or nothing. Raises DataError for
    a row without tests, VerifierFailed where the sandbox fails.
    """
    return _verify(sandbox, (TESTS,))


def hidden(task: schema.Task, sandbox: schema.Sandbox) -> Verify:
    """The same with the row's `challenge_tests` as well, which no prompt shows; none add nothing."""
    return _verify(sandbox, (TESTS, CHALLENGE))


def _verify(settings: schema.Sandbox, columns: Sequence[str]) -> Verify:
    sandbox = _Started(settings)

    def verify(completion: str, row: Row) -> Verdict:
        tests = [test for column in columns for test in _tests(row, column)]
        if not tests:
            raise DataError(f"row {row.id} ({row.source}) has no tests; its source needs keep: [{TESTS}, {SETUP}]")
        program = code_in(completion)
        if not _parses(program):
            return Verdict(correct=False, parsed=None)
        return Verdict(correct=sandbox.passes(program, (row.kept or {}).get(SETUP, ""), tests), parsed=program)

    return verify


def code_in(completion: str) -> str:
    """The program of an answer: its last block fenced as Python, else its last fenced block, else all of it.

    A block that isn't closed goes to the end.
    """
    blocks: list[tuple[bool, list[str]]] = []
    within = False
    for line in completion.splitlines():
        mark = line.strip()
        if mark.startswith(_FENCE) and (not within or mark == _FENCE):
            within = not within
            if within:
                blocks.append((mark.removeprefix(_FENCE).strip().lower() in _PYTHON, []))
        elif within:
            blocks[-1][1].append(line)
    chosen = [lines for python, lines in blocks if python] or [lines for _, lines in blocks]
    return "\n".join(chosen[-1]) if chosen else completion


def _parses(program: str) -> bool:
    """Whether it is a program at all: what isn't needs no sandbox."""
    if not program.strip() or len(program) > _LONGEST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # too deep for the parser is no answer either
        return False
    return True


def _tests(row: Row, column: str) -> list[str]:
    text = (row.kept or {}).get(column)
    if not text:
        return []
    try:
        tests = json.loads(text)
    except ValueError:
        tests = None
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise DataError(f"row {row.id} ({row.source}): {column!r} is no JSON list of asserts: {text[:80]!r}")
    return tests


class _Started:
    """A sandbox that is started for the first program and stays for the others; every process has its own."""

    def __init__(self, settings: schema.Sandbox) -> None:
        self._settings = settings
        self._sandbox: Any = None
        self._process: int | None = None

    def passes(self, program: str, setup: str, tests: Sequence[str]) -> bool:
        """Raises VerifierFailed where the sandbox fails."""
        return bool(self._open().run(program, setup, tests).passed)

    def _open(self) -> Any:
        if self._process != os.getpid():
            from pipelines.sandbox.sandbox import Sandbox

            self._sandbox, self._process = Sandbox(self._settings).__enter__(), os.getpid()
            atexit.register(self._close, self._process)
        return self._sandbox

    def _close(self, process: int) -> None:
        if process == os.getpid():  # a fork inherits what is registered, and must leave its parent's alone
            self._sandbox.close()
