"""Files that run code when they are read: pickles, whatever their names are."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import UserError

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz")
PROTOCOLS = tuple(bytes([0x80, number]) for number in range(2, 6))  # how a pickle of each protocol begins
# Formats of their own, whose first bytes may be anything.
PLAIN = (".safetensors", ".py", ".json", ".parquet", ".png", ".pyc")


def check(folder: Path, name: str) -> None:
    """Raises UserError naming the first file of a folder that is pickled; `name` is what the folder is of."""
    path = next(pickled(folder), None)
    if path is not None:
        raise UserError(f"{name}: {path.relative_to(folder)} is pickled, which runs code when loaded, and is refused")


def pickled(folder: Path) -> Iterator[Path]:
    """Files below the folder that are pickled, by their names or by what they begin with."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.suffix.lower() in SUFFIXES or _holds_pickle(path)):
            yield path


def _holds_pickle(path: Path) -> bool:
    if path.suffix in PLAIN:
        return False
    with path.open("rb") as stream:
        begins = stream.read(2)
    if begins in PROTOCOLS:
        return True
    # What torch.save writes is an archive around a pickle.
    if begins != b"PK" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".pkl") for name in archive.namelist())
