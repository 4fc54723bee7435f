"""Every kind of defect is named with its line, all in one pass; what is whole is read as it stands."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects, Place
from pipelines.dataset.read import Record, content_digest, read_source, source_files
from pipelines.errors import DataError
from pipelines.product import digest_of, file_hash
from tests.dataset.conftest import lines_of, reported

MakeSource = Callable[..., Source]
Read = Callable[..., tuple[list[Record], list[str]]]

BAD_CSV = (
    b"\xef\xbb\xbfquery,label\n"
    b'"spans\ntwo lines",card\n'
    b"one field\n"
    b"too,many,fields\n"
    b" ,card\n"
    b"caf\xe9 closed,card\n"
    b"nul\0here,card\n"
    b'"quoted" wrongly,card\n'
    b"\n"
    b"good,  card \n"
    b'"second\nline is \xff",card\n'
    b'"never closed,card\n'
    b"last,card\n"
)

BAD_JSONL = (
    b'\xef\xbb\xbf{"query": "good", "label": "card"}\n'
    b'{"query": "cut off"\n'
    b'["query", "label"]\n'
    b'{"query": "a", "query": "b", "label": "card"}\n'
    b'{"query": [{"a": 1, "a": 2}]}\n'
    b'{"score": NaN}\n'
    b'{"score": [-Infinity]}\n'
    b'{"score": 1e999}\n'
    b"\n"
    b'{"query": "nul \0"}\n'
    b'{"query": "\xff\xfe", "label": "card"}\n'
    + b"[" * 100_000
    + b'\n{"query": "nul \\u0000", "label": {}} more\n'
    + b'{"query": "line \xe2\x80\xa8 separator", "label": 1.5}'
)


def test_every_defect_of_a_csv_file_has_its_line(read: Read) -> None:
    records, defects = read(BAD_CSV)
    assert defects == [
        ":4: 1 field, the header has 2",
        ":5: 3 fields, the header has 2",
        f":7: not UTF-8: byte 0xe9 at byte {BAD_CSV.index(0xE9)} of the file",
        f":8: NUL byte at byte {BAD_CSV.index(0)} of the file",
        ":9: text after a closing quote; a quote inside a field is doubled",
        f":13: not UTF-8: byte 0xff at byte {BAD_CSV.index(0xFF)} of the file",
        ":14: a quote that opens here is never closed",
    ]
    assert lines_of(records) == [2, 6, 11]
    assert records[0].fields == {"query": "spans\ntwo lines", "label": "card"}
    assert records[-1].fields == {"query": "good", "label": "  card "}


def test_every_defect_of_a_jsonl_file_has_its_line(read: Read) -> None:
    records, defects = read(BAD_JSONL, "jsonl")
    assert defects == [
        ":2: not JSON: Expecting ',' delimiter at column 20",
        ":3: is a list, expected an object",
        ":4: key 'query' occurs more than once in an object",
        ":5: key 'a' occurs more than once in an object",
        ":6: NaN is no number in JSON",
        ":7: -Infinity is no number in JSON",
        ":8: 1e999 is beyond what a float can hold",
        f":10: NUL byte at byte {BAD_JSONL.index(0)} of the file",
        f":11: not UTF-8: byte 0xff at byte {BAD_JSONL.index(0xFF)} of the file",
        ":12: not JSON: nested too deeply",
        ":13: not JSON: Extra data at column 38",
    ]
    assert lines_of(records) == [1, 14]
    assert records[-1].fields == {"query": "line \u2028 separator", "label": 1.5}


def test_every_defect_of_a_clinc150_file_has_its_line(read: Read) -> None:
    content = b'{"train": [\n["hi", "greet"],\n["no intent"],\n[\n"a", 3],\n["", "greet"]\n], "other": [[1]]}'
    records, defects = read(content, "clinc150", parts=["train", "tain", "other_"])
    assert defects == [
        ": no pairs in part 'other_'; nearest valid name: other",
        ": no pairs in part 'tain'; nearest valid name: train",
        ":3: expected a pair [query, intent]",
    ]
    assert lines_of(records) == [2, 4, 6]
    assert [record.fields for record in records[:2]] == [
        {"query": "hi", "intent": "greet"},
        {"query": "a", "intent": 3},
    ]
    assert {record.part for record in records} == {"train"}


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
    _, defects = read(content, "clinc150", parts=["train"])
    assert defects == [reason]


@pytest.mark.parametrize(
    ("content", "format", "reason"),
    [
        (b"", "csv", ": is empty"),
        (b"query,label\n", "csv", ": holds no record"),
        (b"\n\n", "jsonl", ": holds no record"),
        (b"[]", "json", ": holds no record"),
        ("query,label\n".encode("utf-16"), "csv", ": is UTF-16, expected UTF-8"),
        (b"query,label,query\na,b,c\n", "csv", ":1: column 'query' occurs 2 times"),
        (b"query,label\ra,b\r", "csv", ":1: a carriage return inside a line; lines end in LF or CRLF"),
        (b"query\xff,label\na,b\n", "csv", ":1: not UTF-8: byte 0xff at byte 5 of the file"),
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


def test_every_column_that_the_configuration_names_is_looked_for(read: Read) -> None:
    named = {name: name for name in ("completion", "answer", "group", "time", "system", "tools")}
    _, defects = read(b"query,label\na,b\n", **named)
    assert [line.split(";")[0] for line in defects] == [f":1: no column {name!r}" for name in named]


def test_without_named_columns_none_may_occur_twice(read: Read) -> None:
    records, defects = read(b",a,\n1,2,3\n", prompt=None, label=None)
    assert (records[0].fields["a"], defects) == ("2", [])
    assert read(b"a,b,a\n1,2,3\n", prompt=None, label=None) == ([], [":1: column 'a' occurs 2 times"])


def test_files_that_cannot_be_opened(make_source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    defects = Defects(max_reported=20)
    for name in ("missing.csv", "loop.csv", "pipe.csv"):
        source = make_source(f"{tmp_path}/{name}")
        assert list(read_source(source, defects, 1000)) == []
        assert content_digest(source) is None
    with pytest.raises(DataError) as error:
        defects.raise_if_any()
    assert str(error.value).splitlines() == [
        f"{tmp_path}/missing.csv: no such file (looked for {tmp_path}/missing.csv)",
        f"{tmp_path}/loop.csv: can't be read: Too many levels of symbolic links",
        f"{tmp_path}/pipe.csv: is no regular file",
        "3 defects in the source files",
    ]


def test_a_file_without_permission(make_source: MakeSource, tmp_path: Path) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("query,label\na,b\n")
    path.chmod(0)
    defects = Defects(max_reported=20)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything: ask as nobody
    try:
        assert list(read_source(make_source(path), defects, 1000)) == []
    finally:
        os.seteuid(user)
    with pytest.raises(DataError, match="can't be read: Permission denied"):
        defects.raise_if_any()


def test_a_file_that_two_sources_read_is_wrong_once(make_source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("query,label\nonly\n")
    defects = Defects(max_reported=20)
    for _ in range(2):
        list(read_source(make_source(tmp_path / "missing.csv"), defects, 1000))
        list(read_source(make_source(tmp_path / "bad.csv"), defects, 1000))
    assert reported(defects) == [
        f"{tmp_path}/missing.csv: no such file (looked for {tmp_path}/missing.csv)",
        f"{tmp_path}/bad.csv:2: 1 field, the header has 2",
    ]
    assert len(defects) == 2


def test_a_column_that_nobody_asked_for_may_occur_twice(read: Read) -> None:
    records, defects = read(b"query,x,label,x\na,1,card,2\n")
    assert (records[0].fields["query"], defects) == ("a", [])


def test_windows_line_ends_are_no_part_of_an_answer(read: Read) -> None:
    records, defects = read(b'query,label\r\n"a\r\nb",card\r\nc,card\r\n')
    assert defects == []
    assert [(record.place.line, *record.fields.values()) for record in records] == [
        (2, "a\r\nb", "card"),
        (4, "c", "card"),
    ]


def test_a_tab_separated_file_is_read_as_csv_is(read: Read) -> None:
    records, defects = read(b'query\tlabel\n"a\tb"\tcard\nc\n', "tsv")
    assert [record.fields for record in records] == [{"query": "a\tb", "label": "card"}]
    assert defects == [":3: 1 field, the header has 2"]


def test_the_line_limit_holds_for_lines_and_for_records(read: Read) -> None:
    long = b"x" * 101
    content = (
        b"query,label\n" + long[:95] + b",card\n" + long + b",card\nc,card\n" + b'"' + long[:70] + b"\n" + long[:70]
    )
    records, defects = read(content + b'",card\nd,card\n', max_line_bytes=100)
    assert lines_of(records) == [2, 4, 7]
    assert defects == [":3: is 106 bytes long, the limit is 100", ":5: the record is 147 bytes long, the limit is 100"]


def test_a_quote_that_is_never_closed_swallows_no_memory_and_no_later_record(read: Read) -> None:
    open_quote = b'query,label\na,"open' + b"\nmore words" * 1000
    _, defects = read(open_quote, max_line_bytes=100)
    assert defects == [":2: a quote that opens here is never closed"]
    records, defects = read(open_quote + b'"\nb,card\n', max_line_bytes=100)
    assert [record.fields["query"] for record in records] == ["b"]
    assert defects == [":2: the record is 10,008 bytes long, the limit is 100"]


def test_a_long_line_with_a_quote_in_it_leaves_the_next_records_alone(read: Read) -> None:
    content = b'query,label\n"a\n' + b"x" * 200 + b'",card\n"b",card\n' + b"y" * 300 + b'"",card\nc,card\n'
    records, defects = read(content, max_line_bytes=100)
    assert [record.fields["query"] for record in records] == ["b", "c"]
    assert defects == [":3: is 206 bytes long, the limit is 100", ":5: is 307 bytes long, the limit is 100"]


def test_bytes_are_counted_over_long_lines(read: Read) -> None:
    content = b'{"a": 1}\n' + b"x" * 500 + b'\n{"a": "\xff"}\n'
    _, defects = read(content, "jsonl", max_line_bytes=100)
    assert defects[1] == f":3: not UTF-8: byte 0xff at byte {content.index(0xFF)} of the file"


def test_an_open_quote_holds_no_more_than_the_limit(make_source: MakeSource, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'query\n"' + (b"x" * 999 + b"\n") * 10_000)
    source = make_source(tmp_path / "a.csv")
    tracemalloc.start()
    assert list(read_source(source, Defects(5), 100_000)) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_long_json_line_is_told_with_its_length(read: Read, end: bytes) -> None:
    fits, long = b'{"a": "%s"}' % (b"x" * 90), b'{"a": "%s"}' % (b"x" * 70_000)
    records, defects = read(fits + (end or b"\n") + long + end, "jsonl", max_line_bytes=len(fits))
    assert lines_of(records) == [1]
    assert defects == [f":2: is 70,009 bytes long, the limit is {len(fits)}"]
    assert read(fits + end, "jsonl", max_line_bytes=len(fits) - 1)[1] == [":1: is 99 bytes long, the limit is 98"]


def test_a_defect_keeps_what_was_written_for_the_quarantine(make_source: MakeSource, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": \n{"a": "\xff"}\n')
    (rows / "b.csv").write_bytes(b'a,b\n1\n2,"x" y\n')
    quarantine = tmp_path / "quarantine.jsonl"
    with quarantine.open("w") as stream:
        defects = Defects(10, stream)
        assert len(list(read_source(make_source(rows), defects, 1000))) == 1
        defects.raise_if_any()
    kept = [json.loads(line)["record"] for line in quarantine.read_text().splitlines()]
    assert kept == ['{"a": ', '{"a": "\\xff"}\n', ["1"], '2,"x" y\n']


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"query\na\n", ":1: no column 'text'; the header has 'query'; nearest valid name: query"),
        ("a.json", b'[{"text": "\xff"}]', ":1: not UTF-8: byte 0xff at byte 11 of the file"),
        ("a.json", b'[{"text": "a"},\n}', ":2: not JSON: Expecting value at column 1"),
        ("a.jsonl.gz", b'{"text": "a"}\n', ": is no whole .gz file: Not a gzipped file (b'{\"')"),
    ],
)
def test_what_spoils_a_whole_file_ends_the_stage_in_spite_of_a_quarantine(
    make_source: MakeSource, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with (tmp_path / "quarantine").open("w") as stream:
        defects = Defects(10, stream)
        list(read_source(make_source(tmp_path / name, prompt="text"), defects, 1000))
    assert reported(defects)[0] == f"{tmp_path}/{name}{reason}"


def test_the_digest_is_of_the_content_wherever_it_lies(make_source: MakeSource, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a.csv", "b.csv"):
            (tmp_path / folder / name).write_text(f"query\n{name}\n")
    one, two = tmp_path / "one", tmp_path / "two"
    hashes = {name: file_hash(one / name) for name in ("a.csv", "b.csv")}
    assert content_digest(make_source(one / "a.csv")) == hashes["a.csv"]
    assert content_digest(make_source(one)) == content_digest(make_source(f"{two}/*.csv")) == digest_of(hashes)
    assert source_files(make_source(two)) == [two / "a.csv", two / "b.csv"]
    (two / "b.csv").write_text("query\nchanged\n")
    assert content_digest(make_source(two)) != digest_of(hashes)
    assert content_digest(make_source(tmp_path / "missing.csv")) is None
    assert content_digest(make_source(sql="SELECT 1", url="sqlite://")) is None


def test_a_record_knows_the_file_as_the_user_wrote_it(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.csv").write_text("query\nhi\n")
    for path in ("rows", "rows/", "rows/*.csv", "rows/a.csv", "./rows"):
        (record,) = read_source(make_source(path), Defects(1), 1000)
        assert record == Record(Place("./rows/a.csv" if path == "./rows" else "rows/a.csv", 2), {"query": "hi"})


def test_a_record_with_two_faults_counts_once_and_reasons_of_a_kind_together(tmp_path: Path) -> None:
    with (tmp_path / "quarantine").open("w") as stream:
        defects = Defects(10, stream)
        for line, (first, second) in enumerate([("'a' is empty", "no label 'x'"), ("'b' is empty", "no label 'y'")], 1):
            defects.add(Place("a.csv", line), first)
            defects.add(Place("a.csv", line), second)
    assert (len(defects), defects.num_records, defects.num_faulty) == (4, 2, 2)
    assert defects.reasons == {"… is empty": 2, "no label …": 2}
