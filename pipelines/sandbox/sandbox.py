"""Programs that a model wrote, run and judged.

A program meets only the calls of its tests; what these should give is compared elsewhere (`checker.py`). A nonce that
each run has anew comes back with the results, after the last call: whoever ends early, whatever the exit code, has no
results. The nonce is in the program's own process, so it guards against accidents; against forgery it is of use that
the expected values are nowhere near.
"""

import json
import marshal
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, TracebackType
from typing import Any, Self

from pipelines.config import schema
from pipelines.errors import UserError
from pipelines.sandbox import frames, remote, zygote
from pipelines.sandbox.bubblewrap import INSTALL
from pipelines.sandbox.split import CannotSplit, split
from pipelines.sandbox.warm import Warm
from pipelines.tasks.verdict import VerifierFailed

_GRACE_S = 20.0  # beyond a program's wall time, until its interpreter counts as hung


@dataclass(frozen=True, slots=True)
class Ran:
    """`passed`: every test held. `failure`: why not, in one line; None where it passed."""

    passed: bool
    failure: str | None


class Sandbox:
    """Runs programs one after another: a context manager, for one thread.

    It owns a warm interpreter that forks for each program (or the address of a server), and a second one that compares.
    Both start when they are first needed, and again after they have failed.
    """

    def __init__(self, settings: schema.Sandbox) -> None:
        self.settings = settings
        limits = settings.model_dump(mode="json")
        isolated = settings.backend == "bubblewrap"
        self._runner = Warm("zygote", {**limits, "isolated": isolated})
        self._judge = Warm("judging", {**limits, "isolated": isolated})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the sandbox's processes; a later run starts them again."""
        self._runner.close()
        self._judge.close()

    @property
    def processes(self) -> list[int]:
        """The ids of the sandbox's own processes that live now."""
        return [warm.process.pid for warm in (self._runner, self._judge) if warm.process is not None]

    def run(self, code: str, setup: str, tests: Sequence[str]) -> Ran:
        """Runs the code, then the set-up, then the tests (assertions, one a string), as one program.

        Any failure of the program is a `Ran` that didn't pass, limits and crashes too. Raises VerifierFailed where the
        sandbox itself fails; then nothing is known of the program.
        """
        try:
            asked = _asked(setup, tuple(tests))
        except CannotSplit as error:
            return Ran(False, str(error))
        nonce = secrets.token_hex(16)
        end, told = self._results(nonce, code, setup, asked)
        given, _, results = told.partition(b" ")
        if end != "done":
            return Ran(False, end)
        if not secrets.compare_digest(given, nonce.encode()):
            return Ran(False, "it ended before its last test")
        return self._compared(asked.judged, results)

    def tell(self, code: str, expression: str) -> tuple[str, str | None]:
        """Runs the code, then tells the text that the expression gives: how that ended, and the text.

        It ends with `done`, or with a limit or why there is no text (None). The program may have forged the text.
        Raises VerifierFailed where the sandbox itself fails.
        """
        call = (expression,)
        asked = Asked(((call,),), ((_compiled(call),),), b"")
        nonce = secrets.token_hex(16)
        end, told = self._results(nonce, code, "", asked)
        given, _, results = told.partition(b" ")
        if end != "done":
            return end, None
        if not secrets.compare_digest(given, nonce.encode()):
            return "it ended early", None
        return _text(results)

    def _results(self, nonce: str, code: str, setup: str, asked: "Asked") -> tuple[str, bytes]:
        if self.settings.backend in ("sandbox_fusion", "piston"):
            request = {"nonce": nonce, "code": code, "setup": setup, "calls": asked.sources}
            return remote.ask(self.settings, json.dumps(request))
        try:
            # marshal, because it wakes far less of a fork's memory than JSON; both sides are the same interpreter
            request_of_fork = marshal.dumps((nonce, code, setup, asked.compiled))
            reply = self._runner.ask(request_of_fork, self.settings.wall_s + _GRACE_S)
        except frames.Late as error:
            raise VerifierFailed(f"the sandbox's interpreter hangs: {error}") from error
        end, _, told = reply.partition(b"\n")
        if end.decode() == zygote.BROKEN:
            self._runner.close()
            raise VerifierFailed(f"the sandbox can't confine a program: {told.decode(errors='replace')}")
        return end.decode(), told

    def _compared(self, judged: bytes, results: bytes) -> Ran:
        try:
            failure: Any = json.loads(self._judge.ask(judged + results, self.settings.wall_s))
        except frames.Late:  # only a value can make a comparison long, and the program chose it
            return Ran(False, "its results can't be compared in time")
        return Ran(failure is None, failure)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a program's tests ask: of the program its calls, as sources and compiled; of the judge all, as a line."""

    sources: tuple[tuple[tuple[str, ...], ...], ...]
    compiled: tuple[tuple[tuple[str | CodeType, ...], ...], ...]
    judged: bytes


@lru_cache(maxsize=512)
def _asked(setup: str, tests: tuple[str, ...]) -> Asked:
    """The same for all programs that are to pass the tests. Raises CannotSplit."""
    sources = tuple(tuple(tuple(slot.sources()) for slot in part.slots) for part in split(setup, tests))
    compiled = tuple(tuple(_compiled(call) for call in of_test) for of_test in sources)
    return Asked(sources, compiled, json.dumps({"setup": setup, "tests": tests}).encode() + b"\n")


def _text(results: bytes) -> tuple[str, str | None]:
    try:
        found = json.loads(results)
        text = found["values"][0][0][1] if found["failure"] is None else None
        failure = found["failure"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return "its results can't be read", None
    if isinstance(text, str):
        return "done", text
    return (" ".join(failure.split())[:300] if isinstance(failure, str) else "") or "it failed", None


def _compiled(call: tuple[str, ...]) -> tuple[str | CodeType, ...]:
    code: CodeType = compile(call[0], "<test>", "eval", dont_inherit=True)
    return (code, *call[1:])


def check_isolation(settings: schema.Sandbox) -> None:
    """Whether programs can be isolated as the settings say: starts the sandbox and runs a program that does nothing.

    Servers aren't asked. Raises UserError, naming the field and what is to be installed or allowed.
    """
    if settings.backend != "bubblewrap":
        return
    if settings.processes > 1 and os.geteuid() == 0:
        raise UserError(
            "verifier.sandbox.processes above 1 needs another user than root, whose processes the kernel doesn't count"
        )
    try:
        with Sandbox(settings) as sandbox:
            ran = sandbox.run("def one():\n    return 1\n", "", ["assert one() == 1"])
    except VerifierFailed as error:
        raise UserError(
            f"verifier.sandbox.backend: bubblewrap can't isolate programs here: {error}. {INSTALL}"
        ) from error
    if not ran.passed:
        raise UserError(f"verifier.sandbox: not even a program that does nothing passes, because of {ran.failure}")
