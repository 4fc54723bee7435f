"""Files found by name, folder and pattern; compressed ones read as they are; damaged ones told, never raised."""

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from pipelines.dataset.files import Unreadable, find
from tests.dataset.conftest import ReadSource

ROWS = b'{"query": "a"}\n' * 3000
CSV = b"query\n" + b"where is it\n" * 3000


def zst(content: bytes) -> bytes:
    stream = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(stream, "zstd") as out:
        out.write(content)
    return bytes(stream.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zst,
}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"query": "a"}\n')


def test_a_folder_gives_its_files_of_known_endings_in_order(tmp_path: Path) -> None:
    fill(tmp_path, "b.jsonl", "a/c.csv", "a/z.NDJSON.gz", "notes.txt", ".hidden.csv", ".git/x.csv", "c.parquet")
    names = [found.name for found in find(str(tmp_path), "auto")]
    assert names == ["a/c.csv", "a/z.NDJSON.gz", "b.jsonl", "c.parquet"]
    assert [found.shown for found in find(f"{tmp_path}/", "csv")] == [f"{tmp_path}/a/c.csv"]


def test_a_folder_without_readable_files_says_so(read_all: ReadSource, tmp_path: Path) -> None:
    fill(tmp_path, "notes.txt", ".csv")
    records, (defect,) = read_all(tmp_path)
    assert records == []
    assert defect.startswith(f"{tmp_path}: is a folder without a file of a known ending; known endings: .csv .tsv")


def test_a_pattern_gives_what_it_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "d/1.jsonl", "d/e/2.jsonl", "d/e/f.txt", "d/.h.jsonl")
    assert [found.shown for found in find("d/**/*.jsonl", "auto")] == ["d/1.jsonl", "d/e/2.jsonl"]
    assert [found.name for found in find(f"{tmp_path}/d/*/*", "auto")] == ["2.jsonl", "f.txt"]
    with pytest.raises(Unreadable, match="matches no file"):
        find("d/*.csv", "auto")


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(read_all: ReadSource, tmp_path: Path) -> None:
    fill(tmp_path, "a[1].jsonl", "a1.jsonl")
    records, _ = read_all(tmp_path / "a[1].jsonl")
    assert records[0].place.path.endswith("a[1].jsonl")


def test_formats_may_be_mixed_and_an_unknown_one_is_told(read_all: ReadSource, tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl", "c.text")
    (tmp_path / "b.csv").write_text("query\nb\n")
    records, (defect,) = read_all(f"{tmp_path}/*")
    assert [record.fields["query"] for record in records] == ["a", "b"]
    assert defect.startswith(f"{tmp_path}/c.text: has an unknown ending; set format, or use one of .csv .tsv .jsonl")
    assert len(read_all(f"{tmp_path}/c.*", format="jsonl")[0]) == 1


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_compressed_file_has_the_lines_of_its_content(read_all: ReadSource, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.jsonl.{ending}"
    path.write_bytes(COMPRESS[ending](ROWS + b'{"query": \n'))
    records, defects = read_all(path)
    assert [record.place.line for record in records] == list(range(1, 3001))
    assert defects == [f"{path}:3001: not JSON: Expecting value at column 11"]


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("damage", ["cut off", "another file"])
def test_a_damaged_archive_is_one_defect(read_all: ReadSource, tmp_path: Path, ending: str, damage: str) -> None:
    path = tmp_path / f"rows.csv.{ending}"
    whole = COMPRESS[ending](CSV)
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut off" else CSV)
    _, (defect,) = read_all(path, prompt="query")
    assert defect.startswith(f"{path}: is no whole .{ending} file: ")


def test_two_compressed_streams_in_one_file_are_read_both(read_all: ReadSource, tmp_path: Path) -> None:
    for ending, compress in COMPRESS.items():
        path = tmp_path / f"rows.jsonl.{ending}"
        path.write_bytes(compress(b'{"query": "a"}\n') + compress(b'{"query": "b"}\n'))
        assert [record.fields["query"] for record in read_all(path)[0]] == ["a", "b"], ending


def test_a_zip_file_of_one_file_is_read_as_that_file(read_all: ReadSource, tmp_path: Path) -> None:
    zipped(tmp_path / "any.zip", {"data/rows.jsonl": ROWS, "__MACOSX/x": b"x"})
    zipped(tmp_path / "rows.csv.zip", {"whatever": CSV})
    records, defects = read_all(tmp_path)
    assert (len(records), defects) == (6000, [])
    assert records[0].place.path == f"{tmp_path}/any.zip"


def test_other_zip_files_are_defects(read_all: ReadSource, tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"a.csv": CSV, "b.csv": CSV})
    whole = zipped(tmp_path / "b.zip", {"a.csv": CSV}).read_bytes()
    (tmp_path / "b.zip").write_bytes(whole[:-30])
    (tmp_path / "c.csv.zip").write_bytes(whole.replace(CSV[:4], b"zzzz").replace(whole[60:70], b"0123456789"))
    encrypted = bytearray(whole)
    encrypted[6] |= 1
    encrypted[whole.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "d.csv.zip").write_bytes(encrypted)
    zipped(tmp_path / "e.zip", {"a.txt": CSV})
    _, defects = read_all(tmp_path)
    assert [line.removeprefix(f"{tmp_path}/").split(": ")[:2] for line in defects] == [
        ["a.zip", "is a .zip file of 2 files, expected one"],
        ["b.zip", "is no whole .zip file"],
        ["c.csv.zip", "is no whole .zip file"],
        ["d.csv.zip", "is an encrypted .zip file"],
    ]
