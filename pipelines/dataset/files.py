"""The files of a `path` source: found by file, folder or pattern, told by their ending, opened decompressed."""

import bz2
import glob
import gzip
import io
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.config.paths import PROJECT, resolve

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
ENCRYPTED = 0x1  # of a .zip member's flags
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# What the decompressors raise for a file that is damaged, cut off, or not of their kind.
DAMAGED = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


class Unreadable(Exception):
    """A file that can't be read as a whole, and why."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a source: where it is, how the user knows it, its name within the folder or pattern."""

    path: Path
    shown: str
    name: str


def find(path: str, format: str) -> list[Found]:
    """The files that a file, folder or pattern names, sorted.

    Of a folder those whose ending is known (with a format other than auto: of that format), hidden ones left out.
    Raises Unreadable where there is none.
    """
    given = resolve(path)
    if os.path.isdir(given):  # noqa: PTH112  # Path's raises where a folder above may not be looked into
        return _in_folder(given, path, format)
    if not os.path.lexists(given) and glob.has_magic(path):
        return _by_pattern(path)
    return [Found(given, path, given.name)]


def _in_folder(folder: Path, shown: str, format: str) -> list[Found]:
    names = [name for name in sorted(_visible(folder)) if _belongs(folder / name, format)]
    if not names:
        of = "a known ending" if format == "auto" else f"format {format}"
        raise Unreadable(f"is a folder without a file of {of}; known endings: {' '.join(FORMATS)}")
    return [Found(folder / name, f"{shown.rstrip('/')}/{name}", name) for name in names]


def _visible(folder: Path) -> Iterator[str]:
    """Relative names of the files below a folder."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(root) / name).relative_to(folder).as_posix() for name in names if not name.startswith("."))


def _belongs(path: Path, format: str) -> bool:
    try:
        known = format_of(path)
    except Unreadable:
        return True  # reading it tells what is wrong
    return known is not None and format in {"auto", known, "clinc150" if known == "json" else known}


def _by_pattern(pattern: str) -> list[Found]:
    pattern = str(Path(pattern).expanduser())
    for root in (Path.cwd(), PROJECT):
        matches = sorted(glob.glob(pattern, root_dir=root, recursive=True))  # noqa: PTH207  # Path's takes no absolute one
        if files := [name for name in matches if (root / name).is_file()]:
            base = os.path.commonpath([Path(name).parent for name in files])
            return [Found(root / name, name, os.path.relpath(name, base or ".")) for name in files]
    raise Unreadable(f"matches no file (looked in {Path.cwd()} and {PROJECT})")


def format_of(path: Path) -> str | None:
    """The format that the ending tells, of a .zip file the ending of the file in it; None where it is unknown.

    Raises Unreadable for a .zip file that is damaged or holds another number of files than one.
    """
    inner = path.with_suffix("") if is_compressed(path) else path
    found = FORMATS.get(inner.suffix.lower())
    if found is None and path.suffix.lower() == ".zip":
        with _archive(path) as archive:
            found = FORMATS.get(Path(_only_member(archive).filename).suffix.lower())
    return found


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSIONS


def check(path: Path) -> None:
    """Raises Unreadable where the file can't be opened, is empty, or is UTF-16."""
    try:
        if path.is_dir():
            raise Unreadable("is a folder, expected a file")
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable("is no regular file")
        with path.open("rb") as file:
            start = file.read(2)
    except FileNotFoundError:
        raise Unreadable(f"no such file (looked for {path})") from None
    except OSError as error:
        raise Unreadable(f"can't be read: {error.strerror}") from None
    if start in UTF16_MARKS:
        raise Unreadable("is UTF-16, expected UTF-8")
    if not start:
        raise Unreadable("is empty")


def opened(path: Path) -> BinaryIO:
    """The file's decompressed bytes, read as they are asked for.

    Raises Unreadable, also while the bytes are being read, where a compressed file is damaged.
    """
    if not is_compressed(path):
        return path.open("rb")
    kind = path.suffix.lower()
    try:
        stream = _decompressed(path, kind)
    except DAMAGED as error:
        raise _damaged(kind, error) from None
    return io.BufferedReader(_Decompressed(stream, kind), 1 << 16)


class _Decompressed(io.RawIOBase):
    """Bytes of a decompressor, whose many ways to say that a file is damaged become one."""

    def __init__(self, stream: Any, kind: str) -> None:
        self._stream, self._kind = stream, kind

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except DAMAGED as error:
            raise _damaged(self._kind, error) from None

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _damaged(kind: str, error: Exception) -> Unreadable:
    if isinstance(error, PermissionError):
        return Unreadable(f"can't be read: {error.strerror}")
    return Unreadable(f"is no whole {kind} file: {str(error) or type(error).__name__}")


def _decompressed(path: Path, kind: str) -> Any:
    if kind == ".zip":
        with _archive(path) as archive:
            return archive.open(_only_member(archive))
    if kind == ".zst":
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    readers: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return readers[kind](path, "rb")


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except DAMAGED as error:
        raise _damaged(".zip", error) from None


def _only_member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """Raises Unreadable where the archive holds another number of files, or an encrypted one."""
    found = [info for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    if len(found) != 1:
        raise Unreadable(f"is a .zip file of {len(found)} files, expected one")
    if found[0].flag_bits & ENCRYPTED:
        raise Unreadable("is an encrypted .zip file")
    return found[0]
