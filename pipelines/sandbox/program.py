"""What runs beside a candidate's program: it evaluates the calls of the tests, and tells the results as plain data.

Everything here is the program's to patch, read and forge, as it shares its process. That helps it nowhere: the values
that the tests expect are in another process (`checker.py`). The file needs the standard library only, and nothing of
this package, because servers get its text together with the program.
"""

import collections
import json
import os
import sys
import types
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

DEEPEST = 60
MOST = 100_000  # values in all results together
LARGEST = 60_000  # bytes of all results: they are written at once into a pipe, which holds 64 KiB
_DIRECT = (type(None), bool, float)
_TAGS: dict[type, str] = {tuple: "t", set: "s", frozenset: "z", collections.deque: "q"}
_MAPPINGS: dict[type, str] = {
    dict: "d",
    collections.Counter: "C",
    collections.OrderedDict: "O",
    collections.defaultdict: "D",
}


class NotPlain(Exception):
    """A value that isn't plain data of exactly the types that `plain` tells."""


def plain(value: Any, left: list[int], depth: int = 0) -> str:
    """The value in JSON: exact types only, so an object can't bring its own `__eq__` along.

    Lists, strings, floats (nan and infinities too), bools, None and small ints are themselves; all others are objects
    of one key, their kind. `left` holds how many values may yet be told. Raises NotPlain for any other type, for what
    is nested too deeply and for too much of it.
    """
    kind = type(value)
    left[0] -= 1
    if depth > DEEPEST or left[0] < 0:
        raise NotPlain("a value too large or too deep")
    if kind is str:
        return encode_basestring_ascii(value)
    if kind is int:
        return str(value) if -(1 << 53) < value < 1 << 53 else f'{{"i":"{value:#x}"}}'
    if kind is list:
        return f"[{_each(value, left, depth)}]"
    if kind in _TAGS:
        return f'{{"{_TAGS[kind]}":[{_each(value, left, depth)}]}}'
    if kind in _MAPPINGS:
        pairs = [f"[{_each(pair, left, depth)}]" for pair in value.items()]
        return f'{{"{_MAPPINGS[kind]}":[{",".join(pairs)}]}}'
    return _rarely(kind, value)


def _each(values: Iterable[Any], left: list[int], depth: int) -> str:
    return ",".join([plain(value, left, depth + 1) for value in values])


def _rarely(kind: type, value: Any) -> str:
    if kind in _DIRECT:
        return json.dumps(value)
    if kind is bytes or kind is bytearray:
        return json.dumps({"b" if kind is bytes else "a": value.hex()})
    if kind is complex:
        return json.dumps({"c": [value.real, value.imag]})
    if kind is range:
        return json.dumps({"r": [hex(value.start), hex(value.stop), hex(value.step)]})
    raise NotPlain(f"{getattr(kind, '__name__', 'a value')}, which isn't plain data")


def evaluate(nonce: str, code: str, setup: str, calls: Sequence[Sequence[Sequence[str | types.CodeType]]]) -> bytes:
    """The program, the set-up and the calls, run in this order; then the nonce and what they gave.

    `calls` holds for each test its calls, and for each call its source (or what that compiles to) and the expressions
    around it (of the name `_`) that are tried where the result isn't plain data. What is returned reads
    `<nonce> <JSON>`: `values`, for each test that came to its end a list of pairs (which expression, the value), and
    `failure`, why the next one didn't, or null.
    """
    values = []
    failure = "null"
    left = [MOST]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    space = module.__dict__
    where = ""
    try:
        exec(compile(code, "<program>", "exec"), space)
        where = "the tests' set-up: "
        if setup:
            exec(compile(setup, "<setup>", "exec"), space)
        for number, of_test in enumerate(calls, 1):
            where = f"assertion {number} of {len(calls)}: "
            told = ",".join([_call(levels, space, left) for levels in of_test])
            values.append(f"[{told}]")
    except MemoryError:
        failure = '"memory"'
    except BaseException as error:  # noqa: BLE001 SystemExit and KeyboardInterrupt are the program's too
        failure = json.dumps(where + _told(error))
    told = f'{nonce} {{"values":[{",".join(values)}],"failure":{failure}}}'
    if len(told) > LARGEST:
        told = f'{nonce} {{"values":[],"failure":"results of more than {LARGEST} bytes"}}'
    return told.encode("ascii")


def _call(levels: Sequence[str | types.CodeType], space: dict[str, Any], left: list[int]) -> str:
    value = eval(levels[0], space)
    level = 0
    while True:
        try:
            return f"[{level},{plain(value, left)}]"
        except NotPlain:
            level += 1
            if level == len(levels):
                raise
        value = eval(levels[level], {**space, "_": value})


def _told(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        text = " ".join(str(error).split())[:200]
    except BaseException:  # noqa: BLE001 the program's own exception may raise while it is printed
        text = ""
    return text if kind == "NotPlain" else f"{kind}: {text}" if text else kind


def print_results(request: str) -> None:
    """For a server, which gives back what was printed: the results on a line of their own, then the end."""
    out = os.dup(1)
    told = b"\n" + evaluate(**json.loads(request)) + b"\n"
    while told:
        told = told[os.write(out, told) :]
    os._exit(0)
