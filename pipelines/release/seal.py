"""The seal of a registered version: a hash of every file, code included, and the digest that stands for them all."""

import json
from pathlib import Path

from pipelines.errors import UserError
from pipelines.product import digest_of, file_hash

SEAL = "seal.json"
DIGEST_TAG = "files.digest"
# What MLflow leaves in the folder of a version that it has downloaded: its name and number, which nothing runs by.
DOWNLOADED = "registered_model_meta"


def write(folder: Path) -> str:
    """Writes `seal.json` over all other files of the folder; returns the digest that the registry keeps."""
    files = _files(folder)
    (folder / SEAL).write_text(json.dumps(files, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return digest_of(files)


def check(folder: Path, digest: str, name: str) -> None:
    """Raises UserError naming the first file of version `name` that is missing, differs, or isn't listed.

    Compiled files of Python that running the code has left behind are not looked at: code is run from copies without.
    """
    if digest_of(_listed(folder, name)) != digest:
        raise UserError(f"{name}: {SEAL} isn't the one that was registered; expected digest {digest}")
    check_listing(folder, name)


def check_listing(folder: Path, name: str) -> None:
    """As `check`, by the folder's own seal alone: whoever loads it may have no registry to ask for the digest."""
    listed, found = _listed(folder, name), _files(folder)
    for file in sorted({*listed, *found}):
        if file not in found:
            raise UserError(f"{name}: {file} is missing, but was registered")
        if file not in listed:
            raise UserError(f"{name}: {file} was added after the version was registered")
        if listed[file] != found[file]:
            raise UserError(f"{name}: {file} was changed: expected sha256 {listed[file]}, got {found[file]}")


def _listed(folder: Path, name: str) -> dict[str, str]:
    try:
        return dict(json.loads((folder / SEAL).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{name}: {SEAL} is missing or unreadable; expected what package registered") from None


def _files(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file that counts."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: file_hash(path) for name, path in named.items() if name not in (SEAL, DOWNLOADED)}
