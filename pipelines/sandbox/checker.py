"""Compares what a program gave with what its tests expect, in a process where no program ever runs."""

import builtins
import collections
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pipelines.sandbox.split import Split, split

_MAKE: dict[str, Callable[[list[Any]], Any]] = {
    "t": tuple,
    "s": set,
    "z": frozenset,
    "q": collections.deque,
    "d": dict,
    "C": lambda pairs: collections.Counter(dict(pairs)),
    "O": collections.OrderedDict,
    "D": lambda pairs: collections.defaultdict(None, pairs),
}
_MAPPINGS = frozenset("dCOD")
_FEW: dict[str, Callable[[Any], Any]] = {
    "i": lambda told: int(told, 16),
    "b": bytes.fromhex,
    "a": bytearray.fromhex,
    "c": lambda parts: complex(float(parts[0]), float(parts[1])),
    "r": lambda parts: range(*(int(part, 16) for part in parts)),
}


class Garbled(ValueError):
    """Results that `program.py` doesn't write: the program forged them."""


def read_plain(told: Any) -> Any:
    """The value that `program.plain` told. Raises Garbled for anything else."""
    if told is None or type(told) in (bool, int, float, str):
        return told
    if type(told) is list:
        return [read_plain(item) for item in told]
    (tag,) = told if len(told) == 1 else ("",)
    within = told.get(tag)
    try:
        if tag in _MAPPINGS:
            return _MAKE[tag]([(read_plain(key), read_plain(value)) for key, value in within])
        if tag in _MAKE:
            return _MAKE[tag]([read_plain(item) for item in within])
        if tag in _FEW:
            return _FEW[tag](within)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise Garbled(f"a value of kind {tag!r}") from error
    raise Garbled("a value of unknown kind")


class Test:
    """One test's comparison: `eval` of it is whether the test holds."""

    def __init__(self, part: Split, setup: str) -> None:
        self.part, self.setup = part, setup
        self._compiled: dict[tuple[int, ...], Any] = {}

    def fault(self, levels: tuple[int, ...], values: list[Any]) -> str | None:
        """Why it doesn't hold for the values of these expressions of its calls, None where it does.

        Raises ValueError where it has other calls, or a call no such expression.
        """
        code = self._compiled.get(levels)
        if code is None:
            code = self._compiled[levels] = compile(self.part.remaining(levels), "<test>", "eval")
        try:
            space = self._space()
            space.update({f"_{index}": value for index, value in enumerate(values)})
            return None if eval(code, space) else " doesn't hold"
        except MemoryError:
            return ": memory"
        except Exception as error:  # noqa: BLE001 an assertion that raises, of whatever kind, doesn't hold
            return f": {type(error).__name__} while it was compared"

    def _space(self) -> dict[str, Any]:
        space: dict[str, Any] = {"__builtins__": builtins}
        for name in self.part.modules:
            space[name] = __import__(name)
        if self.part.needs_setup:
            exec(_setup(self.setup), space)
        return space


@lru_cache(maxsize=256)
def _setup(setup: str) -> Any:
    return compile(setup, "<setup>", "exec")


def check(tests: Sequence[Test], results: bytes) -> str | None:
    """None where every test holds, else one line: why not. `results` is JSON that the program may have forged."""
    try:
        told = json.loads(results)
        values, failure = list(told["values"]), told["failure"]
        if len(values) > len(tests) or not (failure is None or isinstance(failure, str)):
            raise Garbled("more results than tests")
        for number, pairs in enumerate(values):
            levels = tuple([int(pair[0]) for pair in pairs])
            fault = tests[number].fault(levels, [read_plain(pair[1]) for pair in pairs])
            if fault is not None:
                return f"assertion {number + 1} of {len(tests)}{fault}"
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        return f"its results can't be read: {type(error).__name__}"
    if failure is not None:
        return " ".join(failure.split())[:300] or "it failed"
    return None if len(values) == len(tests) else "it ended before its last test"


@lru_cache(maxsize=512)
def _tests(asked: bytes) -> tuple[Test, ...]:
    told: Mapping[str, Any] = json.loads(asked)
    return tuple(Test(part, told["setup"]) for part in split(told["setup"], tuple(told["tests"])))


def answer(frame: bytes) -> bytes:
    """One request: a line of JSON (`setup`, `tests`), then the results; the reply is JSON, a line of text or null."""
    asked, _, results = frame.partition(b"\n")
    return json.dumps(check(_tests(asked), results)).encode()
