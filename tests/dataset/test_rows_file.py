"""Rows survive the file; anything that is no row is refused with its line."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.row import Row
from pipelines.dataset.rows import digest, read_rows, write_rows
from pipelines.errors import DataError

ROW = Row(
    id="1f",
    task="toy",
    prompt=[
        {"role": "system", "content": "Bé."},
        {"role": "user", "content": "a\u2028b\u0085c\r\n日本"},
    ],
    completion=[{"role": "assistant", "content": "card"}],
    answer="card",
    label="card",
    source="toy.csv:2",
    group="g",
    tools=[{"type": "function", "function": {"name": "look_up"}}],
)


def test_rows_come_back_equal(tmp_path: Path) -> None:
    rows = [ROW, Row.from_dict(ROW.as_dict() | {"id": "2f", "tools": None})]
    path = write_rows(tmp_path, "train", rows)
    assert path == tmp_path / "train.jsonl"
    assert read_rows(path) == rows


def test_the_file_is_plain_utf8_with_sorted_keys(tmp_path: Path) -> None:
    line = write_rows(tmp_path, "train", [ROW]).read_bytes().decode()
    assert "日本" in line
    assert list(json.loads(line)) == sorted(json.loads(line))


def test_the_digest_is_the_hash_of_the_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path, "train", [ROW, ROW])
    assert digest([ROW, ROW]) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest([ROW]) != digest([ROW, ROW])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "id is None, expected text"),
        ({"answer": None}, "answer is None, expected text"),
        ({"source": ""}, "source is '', expected text"),
        ({"prompt": []}, "prompt is no list of messages"),
        ({"prompt": [{"role": "user"}]}, "prompt is no list of messages"),
        ({"completion": [{"content": "card"}]}, "completion is no list of messages"),
        ({"completion": "card"}, "completion is no list of messages"),
        ({"tools": ["look_up"]}, "tools is neither null nor a list of objects"),
        ({"extra": 1}, "a row has no extra"),
        ({"accepted": []}, "accepted is no list of texts"),
        ({"accepted": ["card", 3]}, "accepted is no list of texts"),
        ({"accepted": None}, "accepted is no list of texts"),
        ({"context": "a passage"}, "context is no list of texts"),
        ({"context": [""]}, "context is no list of texts"),
        ({"kept": {}}, "kept is no object of texts"),
        ({"kept": {"turns": 3}}, "kept is no object of texts"),
        ({"kept": ["lang"]}, "kept is no object of texts"),
    ],
)
def test_what_is_no_row_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(ROW.as_dict()), json.dumps(ROW.as_dict() | change)]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=reason) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"id": "1"}', b"\xff", b"\n"])
def test_a_line_that_is_no_record_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(line)
    with pytest.raises(DataError, match=r"train\.jsonl:1: "):
        read_rows(path)


def test_a_call_of_a_tool_needs_no_content(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look_up"}}]}
    row = Row.from_dict(ROW.as_dict() | {"completion": [call]})
    assert read_rows(write_rows(tmp_path, "train", [row])) == [row]


def test_a_row_to_be_answered_and_a_preference_come_back(tmp_path: Path) -> None:
    asked = Row.from_dict(ROW.as_dict() | {"completion": [], "label": "", "tools": None})
    better = Row.from_dict(ROW.as_dict() | {"rejected": [{"role": "assistant", "content": "no"}]})
    path = write_rows(tmp_path, "train", [asked, better])
    assert read_rows(path) == [asked, better]
    assert [b"rejected" in line for line in path.read_bytes().splitlines()] == [False, True]


def test_further_fields_come_back_and_are_written_only_where_there_are_any(tmp_path: Path) -> None:
    more = {"accepted": ["bank card"], "context": ["Lost: the card."], "kept": {"lang": "en", "plan": ""}}
    rich = Row.from_dict(ROW.as_dict() | more)
    path = write_rows(tmp_path, "train", [ROW, rich])
    assert read_rows(path) == [ROW, rich]
    plain, full = (json.loads(line) for line in path.read_bytes().splitlines())
    assert full.keys() - plain.keys() == more.keys()
    assert (ROW.answers, rich.answers) == (["card"], ["card", "bank card"])


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file of rows; run prepare"):
        read_rows(tmp_path / "train.jsonl")
