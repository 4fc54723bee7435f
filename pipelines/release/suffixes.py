"""What a registered version's folder may hold: nothing that runs when it is read."""

from pathlib import Path

from pipelines.errors import UserError

PICKLES = frozenset({".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5"})
KNOWN = frozenset(
    {".safetensors", ".json", ".jsonl", ".jinja", ".txt", ".md", ".yaml", ".yml", ".lock", ".py", ".css", ".parquet"}
    | {".model", ".toml", ".html", ".png", ".svg"}
)
NAMES = frozenset({"MLmodel", "LICENSE", "NOTICE"})
PICKLED = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))


def check(folder: Path, name: str) -> None:
    """Raises UserError naming the first file of version `name` that is pickled, of an unknown kind, or a link."""
    for path in sorted(folder.rglob("*")):
        shown = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UserError(f"{name}: {shown} is a link; expected files of its own")
        if not path.is_file():
            continue
        if path.suffix.lower() in PICKLES or _is_pickled(path):
            raise UserError(f"{name}: {shown} may hold a pickle, which runs code when it is read; expected safetensors")
        if path.suffix.lower() not in KNOWN and path.name not in NAMES:
            raise UserError(f"{name}: {shown} is of a kind that no version has; expected {', '.join(sorted(KNOWN))}")


def _is_pickled(path: Path) -> bool:
    """By its first bytes, whatever its name: a pickle of protocol 2 to 5, or the archive that torch.save writes."""
    with path.open("rb") as stream:
        start = stream.read(9)
    if path.suffix == ".safetensors":
        return start[8:] != b"{"  # it begins with a length of any eight bytes, a pickle's first ones among them
    return start.startswith((*PICKLED, b"PK\x03\x04"))
