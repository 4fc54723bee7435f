"""A stage's result: a folder that is whole or absent, with a manifest of hashes.

A stage writes into `<folder>.partial`; publishing hashes every file, writes `manifest.json` and renames the
folder. A folder without a manifest is therefore never a product, whatever killed its writer.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

MANIFEST = "manifest.json"
# Hashed, but no part of the digest: pages and pictures of what the other files hold, and a table of answers with
# their latencies, the rest of which another file names by a digest of its own.
VIEWS = (".html", ".png", ".parquet")


@dataclass(frozen=True)
class Product:
    """A published folder and what its manifest says."""

    folder: Path
    kind: str
    digest: str
    made_by: dict[str, Any]
    about: dict[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.made_by["run_id"])

    def file(self, name: str) -> Path:
        return self.folder / name

    def named(self) -> dict[str, str]:
        """As the manifest of what is made of it names it."""
        return {"digest": self.digest, "run_id": self.run_id, "folder": str(self.folder)}


def partial(folder: Path) -> Path:
    """Where a stage writes before its product is published; kept across a killed run.

    Raises UserError where the folder can't be written.
    """
    work = work_of(folder)
    try:
        work.mkdir(parents=True, exist_ok=True)
        probe = work / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{work.parent}: can't write the output folder: {error.strerror}") from None
    return work


def work_of(folder: Path) -> Path:
    """The work folder of a product's."""
    return folder.with_name(folder.name + ".partial")


def publish(work: Path, folder: Path, kind: str, made_by: Mapping[str, Any], about: Mapping[str, Any]) -> Product:
    """Hashes the files of `work`, writes its manifest and moves it to `folder`.

    A product's digest stands for it in every later fingerprint, so one without files is an error of the stage.
    """
    files = folder_files(work)
    if not files:
        raise ValueError(f"{work}: the stage left no file")
    digest = _content_digest(files)
    manifest = {"kind": kind, "digest": digest, "made_by": dict(made_by), "about": dict(about), "files": files}
    _write_synced(work / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    work.rename(folder)
    return load(folder)


def load(folder: Path) -> Product:
    """The product in `folder`, every file checked against the manifest.

    Raises UserError naming the first file that is missing or differs.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST}; expected a folder that a stage has finished")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, kind, digest = dict(manifest["files"]), str(manifest["kind"]), str(manifest["digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest: {error!r}") from None
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing, but listed in {MANIFEST}")
        if file_hash(folder / name) != expected:
            raise UserError(f"{folder / name}: its sha256 differs from {MANIFEST}; the file was changed")
    if _content_digest(files) != digest:
        raise UserError(f"{path}: the digest doesn't match the files listed")
    return Product(folder, kind, digest, manifest["made_by"], manifest["about"])


def _content_digest(files: Mapping[str, str]) -> str:
    """Over what doesn't hang on fonts, versions of libraries and clocks."""
    return digest_of({name: value for name, value in files.items() if not name.endswith(VIEWS)})


def discard(work: Path) -> None:
    """Removes what an earlier attempt left in a work folder."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)


def file_hash(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(value: object) -> str:
    """sha256 over the canonical JSON of a value, in hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def folder_files(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below a folder."""
    return {name: file_hash(folder / name) for name in _files(folder)}


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
