"""A JSON file is an array of objects, or an object around one; each element keeps its line."""

from collections.abc import Callable

import pytest

from pipelines.dataset.read import Record
from tests.dataset.conftest import lines_of

Read = Callable[..., tuple[list[Record], list[str]]]


def test_every_defect_of_an_array_has_its_line(read: Read) -> None:
    content = b'[\n{"a": 1},\n{"a": 1,\n "a": 2}, 7,\n{"b": NaN}, {"a":\n [{"c": "\\ud83d"}]\n}, {"long": "%s"}]' % (
        b"x" * 99
    )
    records, defects = read(content, "json", max_line_bytes=100)
    assert defects == [
        ":3: key 'a' occurs more than once in an object",
        ":4: is a number, expected an object",
        ":5: NaN is no number in JSON",
        ":7: is 111 bytes long, the limit is 100",
    ]
    assert lines_of(records) == [2, 5]
    assert records[1].fields == {"a": [{"c": "\ud83d"}]}


def test_the_only_list_of_an_object_holds_the_records(read: Read) -> None:
    content = b'{"version": "1.1", "meta": {"tags": ["x"]},\n"rows":\n[{"a": 1},\n{"a": 2}]}'
    records, defects = read(content, "json")
    assert (lines_of(records), [record.fields["a"] for record in records], defects) == ([3, 4], [1, 2], [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b'\n{"a": [], "b": [1]}',
            ":2: is an object with 2 lists ('a', 'b'), expected an array of objects, or an object with one",
        ),
        (b'{"a": 1}', ":1: is an object with 0 lists, expected an array of objects, or an object with one"),
        (b'"text"', ":1: not JSON: Expecting [ or { at column 1"),
        (b'[{"a": 1}\n{"a": 2}]', ":2: not JSON: Expecting , or ] at column 1"),
        (b'[{"a": 1},\n{"a" 2}]', ":2: not JSON: Expecting ':' delimiter at column 6"),
        (b'[{"a": 1}', ":1: not JSON: Expecting , or ] at column 10"),
        (b'{"rows": [{"a": 1}], "rows": []}', ":1: key 'rows' occurs a second time"),
        (
            b'{"rows": [{"a": 1}]}\n{"rows": []}',
            ":2: not JSON: Extra data at column 1; for a file of one object per line set format: jsonl",
        ),
        (b"[" * 100_000, ": not JSON: nested too deeply"),
        (b'[{"a": "\xff"}]', ":1: not UTF-8: byte 0xff at byte 8 of the file"),
    ],
)
def test_an_unreadable_file_is_told_with_line_and_column(read: Read, content: bytes, reason: str) -> None:
    _, defects = read(content, "json")
    assert defects == [reason]
