"""Every kind of defect is named with its line, all in one pass; what is whole is read as it stands."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects
from pipelines.dataset.read import Record, read_source
from pipelines.errors import DataError

MakeSource = Callable[..., Source]
Read = Callable[..., tuple[list[Record], list[str]]]

BAD_CSV = (
    b"\xef\xbb\xbfquery,label\n"
    b'"spans\ntwo lines",card\n'
    b"one field\n"
    b"too,many,fields\n"
    b" ,card\n"
    b"where is it,\n"
    b"caf\xe9 closed,card\n"
    b"nul\0here,card\n"
    b'"quoted" wrongly,card\n'
    b"\n"
    b"good,  card \n"
    b'"never closed,card\n'
    b"last,card\n"
)

BAD_JSONL = (
    b'{"query": "good", "label": "card"}\n'
    b'{"query": "cut off"\n'
    b'["query", "label"]\n'
    b'{"query": "a", "query": "b", "label": "card"}\n'
    b'{"query": "no label here"}\n'
    b'{"querry": "typo", "label": "card"}\n'
    b'{"query": 7, "label": null}\n'
    b'{"query": "", "label": "card"}\n'
    b"\n"
    b'{"query": "lone \\ud83d", "label": "card"}\n'
    b'{"query": "nul \\u0000", "label": "card"}\n'
    b'{"query": "\xff\xfe", "label": "card"}\n'
    + b"[" * 100_000
    + b'\n{"query": ["list"], "label": {}}\n'
    + b'{"query": "line \xe2\x80\xa8 separator", "label": "card"}'
)


def test_every_defect_of_a_csv_file_has_its_line(read: Read) -> None:
    records, defects = read(BAD_CSV)
    assert defects == [
        ":4: 1 field, the header has 2",
        ":5: 3 fields, the header has 2",
        ":6: 'query' is empty",
        ":7: 'label' is empty",
        f":8: not UTF-8: byte 0xe9 at byte {BAD_CSV.index(0xE9)} of the file",
        f":9: NUL byte at byte {BAD_CSV.index(0)} of the file",
        ":10: text after a closing quote; a quote inside a field is doubled",
        ":13: a quote that opens here is never closed",
    ]
    assert records[0] == Record(2, "spans\ntwo lines", "card", "card")
    assert records[-1] == Record(12, "good", "card", "card")


def test_every_defect_of_a_jsonl_file_has_its_line(read: Read) -> None:
    records, defects = read(BAD_JSONL, "jsonl")
    assert defects == [
        ":2: not JSON: Expecting ',' delimiter at column 20",
        ":3: is a list, expected an object",
        ":4: key 'query' occurs more than once in an object",
        ":5: no field 'label'",
        ":6: no field 'query'; nearest valid name: querry",
        ":7: 'query' is a number, expected text",
        ":7: 'label' is null, expected text",
        ":8: 'query' is empty",
        ":10: 'query' holds a lone surrogate U+D83D",
        ":11: 'query' holds a NUL character",
        f":12: not UTF-8: byte 0xff at byte {BAD_JSONL.index(0xFF)} of the file",
        ":13: not JSON: nested too deeply",
        ":14: 'query' is a list, expected text",
        ":14: 'label' is an object, expected text",
    ]
    assert [record.line for record in records] == [1, 12, 15]
    assert records[-1].prompt == "line \u2028 separator"


def test_every_defect_of_a_clinc150_file_has_its_line(read: Read) -> None:
    content = b'{"train": [\n["hi", "greet"],\n["no intent"],\n[\n"a", 3],\n["", "greet"]\n], "other": [[1]]}'
    records, defects = read(content, "clinc150", prompt="query", answer="intent", parts=["train", "tain", "other_"])
    assert defects == [
        ":3: expected a pair [query, intent]",
        ":4: 'intent' is a number, expected text",
        ":6: 'query' is empty",
        ": no pairs in part 'other_'; nearest valid name: other",
        ": no pairs in part 'tain'; nearest valid name: train",
    ]
    assert records == [Record(2, "hi", "greet", "greet")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"train": [["a", "b"],\n]}', ":2: not JSON: Expecting value at column 1"),
        (b'{"train":\n{"a": "b"}}', ":2: not JSON: Expecting [ at column 1"),
        (b'{"train": [["a", "b"]]\n', ":2: not JSON: Expecting , or } at column 1"),
        (b'{"train": [["a", "b"]]}\n\nmore', ":3: not JSON: Extra data at column 1"),
        (b'{"train": [["a", "b"]],\n"train": []}', ":2: part 'train' occurs a second time"),
        (b'{\n1: [["a", "b"]]}', ':2: not JSON: Expecting " at column 1'),
    ],
)
def test_a_clinc150_file_of_another_shape_is_refused(read: Read, content: bytes, reason: str) -> None:
    _, defects = read(content, "clinc150", answer="intent", parts=["train"])
    assert defects == [reason]


@pytest.mark.parametrize(
    ("content", "format", "reason"),
    [
        (b"", "csv", ": is empty"),
        (b"query,label\n", "csv", ": holds no record"),
        (b"\n\n", "jsonl", ": holds no record"),
        ("query,label\n".encode("utf-16"), "csv", ": is UTF-16, expected UTF-8"),
        (b"query,label,query\na,b,c\n", "csv", ":1: column 'query' occurs 2 times"),
        (
            b"text;label\na;b\n",
            "csv",
            ":1: no column 'query'; the header has 'text;label'; nearest valid name: text;label",
        ),
    ],
)
def test_a_file_without_usable_records(read: Read, content: bytes, format: str, reason: str) -> None:
    records, defects = read(content, format)
    assert records == []
    assert defects[0] == reason


def test_a_missing_column_hides_no_other_defect(read: Read) -> None:
    _, defects = read(b"query,lable\na,b\nc\n\xff,d\n")
    assert defects == [
        ":1: no column 'label'; the header has 'query', 'lable'; nearest valid name: lable",
        ":3: 1 field, the header has 2",
        ":4: not UTF-8: byte 0xff at byte 18 of the file",
    ]


def test_files_that_cannot_be_opened(make_source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    defects = Defects(max_reported=20)
    for name in ("missing.csv", "", "loop.csv", "pipe.csv"):
        assert list(read_source(make_source(f"{tmp_path}/{name}"), defects)) == []
    with pytest.raises(DataError) as error:
        defects.raise_if_any()
    assert str(error.value).splitlines() == [
        f"{tmp_path}/missing.csv: no such file (looked for {tmp_path}/missing.csv)",
        f"{tmp_path}/: is a folder, expected a file",
        f"{tmp_path}/loop.csv: can't be read: Too many levels of symbolic links",
        f"{tmp_path}/pipe.csv: is no regular file",
        "4 defects in the source files",
    ]


def test_a_file_without_permission(make_source: MakeSource, tmp_path: Path) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("query,label\na,b\n")
    path.chmod(0)
    defects = Defects(max_reported=20)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything: ask as nobody
    try:
        assert list(read_source(make_source(path), defects)) == []
    finally:
        os.seteuid(user)
    with pytest.raises(DataError, match="can't be read: Permission denied"):
        defects.raise_if_any()


def test_the_first_defects_are_shown_and_all_are_counted(make_source: MakeSource, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("query,label\n" + "only one field\n" * 50)
    defects = Defects(max_reported=3)
    list(read_source(make_source(path), defects))
    with pytest.raises(DataError) as error:
        defects.raise_if_any()
    assert str(error.value).splitlines() == [
        *(f"{path}:{line}: 1 field, the header has 2" for line in (2, 3, 4)),
        "50 defects in the source files, the first 3 shown",
    ]


def test_a_file_that_two_sources_read_is_wrong_once(make_source: MakeSource, tmp_path: Path) -> None:
    defects = Defects(max_reported=20)
    for _ in range(2):
        list(read_source(make_source(tmp_path / "missing.csv"), defects))
    with pytest.raises(DataError) as error:
        defects.raise_if_any()
    assert str(error.value).count("no such file") == 1
    assert str(error.value).endswith("\n1 defect in the source files")


def test_a_constant_answer_needs_no_answer_column(read: Read) -> None:
    records, defects = read(b"query\nhello\n", answer=None, constant_answer="none")
    assert (records, defects) == ([Record(2, "hello", "none", "none")], [])


def test_clinc150_keeps_the_intent_beside_a_constant_answer(read: Read) -> None:
    content = b'{"val": [["a", "b"]], "train": [["hi", "greet"]]}'
    records, _ = read(content, "clinc150", answer=None, constant_answer="none", parts=["train"])
    assert records == [Record(1, "hi", "none", "greet")]


def test_windows_line_ends_are_no_part_of_an_answer(read: Read) -> None:
    records, defects = read(b'query,label\r\n"a\r\nb",card\r\nc,card\r\n')
    assert defects == []
    assert records == [Record(2, "a\r\nb", "card", "card"), Record(4, "c", "card", "card")]


def test_a_thousand_rows_are_checked_in_well_under_a_second(make_source: MakeSource, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("query,label\n" + "".join(f"question {n},label_{n % 9}\n" for n in range(1000)))
    start = time.process_time()
    assert len(list(read_source(make_source(path), Defects(20)))) == 1000
    assert time.process_time() - start < 0.5


def test_excluded_labels_need_a_label_column(make_source: MakeSource) -> None:
    with pytest.raises(ValueError, match="this source has no answer column"):
        make_source("a.csv", answer=None, constant_answer="none", exclude=["card"])
