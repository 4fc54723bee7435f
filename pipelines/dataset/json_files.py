"""JSONL, one object a line, and JSON, an array of objects or an object around one."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from pipelines.dataset.lines import Text
from pipelines.dataset.record import Record
from pipelines.dataset.strict_json import Decoder, ShapeError, Walk, json_reason, kind


def jsonl_records(text: Text) -> Iterator[Record]:
    """The objects of a file with one a line; blank lines are none."""
    decoder = Decoder()
    for number, line, sound in text.lines():
        if not sound or line.isspace():
            continue
        line = line.rstrip("\r\n")
        try:
            value = decoder.decode(line)
        except (ValueError, RecursionError) as error:
            reason = json_reason(error)
        else:
            if decoder.problem is None and isinstance(value, dict):
                yield Record(text.place(number), value)
                continue
            reason = decoder.problem or f"is {kind(value)}, expected an object"
        text.defects.add(text.place(number), reason, raw=partial(str, line))


def json_records(text: Text) -> Iterator[Record]:
    """The objects of an array, each at its line; the whole text is held."""
    try:
        for line, value, source, problem in _elements(text.content()):
            size = len(source.encode("utf-8", "surrogatepass"))
            if size > text.max_line_bytes:
                problem = f"is {size:,} bytes long, the limit is {text.max_line_bytes:,}"
            if problem is None and isinstance(value, dict):
                yield Record(text.place(line), value)
                continue
            reason = problem or f"is {kind(value)}, expected an object"
            text.defects.add(text.place(line), reason, raw=partial(str, source[: text.max_line_bytes]))
    except (ValueError, RecursionError) as error:
        lines = "; for a file of one object per line set format: jsonl" if _reads_on(error) else ""
        text.defects.add(text.whole(getattr(error, "lineno", None)), json_reason(error) + lines)


def _reads_on(error: ValueError | RecursionError) -> bool:
    return isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"


def _elements(text: str) -> Iterator[tuple[int, Any, str, str | None]]:
    """(line, value, its text, what is wrong with it) of each element of the array."""
    at = Walk(text)
    if at.expect("[{") == "[":
        yield from _array(at)
        at.end()
        return
    lists = {}
    first = at.line()
    for _, key in at.members():
        if at.peek() == "[":
            lists[key] = list(_array(at))
        else:
            at.value()
    at.end()
    if len(lists) != 1:
        held = f"an object with {len(lists)} lists" + (f" ({', '.join(map(repr, lists))})" if lists else "")
        raise ShapeError(f"is {held}, expected an array of objects, or an object with one", first)
    yield from next(iter(lists.values()))


def _array(at: Walk) -> Iterator[tuple[int, Any, str, str | None]]:
    for _ in at.items("[", "]"):
        line = at.line()
        value, source = at.sized_value()
        yield line, value, source, at.problem
