"""Where a version came from, as its sealed files say: `artifacts/release/` and the adapter's manifest."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.product import MANIFEST

RELEASE = "artifacts/release"
CONFIG = f"{RELEASE}/config.yaml"
LINEAGE = f"{RELEASE}/lineage.json"
VERDICTS = f"{RELEASE}/verdicts.parquet"


@dataclass(frozen=True)
class Ancestry:
    """What a version was made of, by content.

    `base` has id, revision, license, files (name -> sha256, where they were hashed) and quantization; each of `sources`
    has name, place, kind, license, split and, where known, sha256 or revision; `adapter` has digest, stage, run and, of
    what it was trained on from, parent (digest, run_id and folder); `scores` has digest, run, heldout and created.
    `code` is the digest of the package, None where it wasn't kept.
    """

    base: dict[str, Any]
    rows: str
    sources: list[dict[str, Any]]
    contamination: dict[str, Any]
    adapter: dict[str, Any]
    teachers: list[dict[str, Any]]
    generated: Any
    scores: dict[str, Any]
    commit: str | None
    dirty: bool
    code: str | None
    lock: str
    libraries: dict[str, str]
    seed: int

    @property
    def parent(self) -> str | None:
        """The digest of the adapter that training went on from."""
        return (self.adapter.get("parent") or {}).get("digest")


def read(folder: Path, name: str) -> Ancestry:
    """From the files of version `name`. Raises UserError where they don't tell: it was registered without them."""
    path = folder / LINEAGE
    if not path.is_file() or not (folder / CONFIG).is_file():
        raise UserError(f"{name}: expected {CONFIG} and {LINEAGE} in it; register it again with this project's package")
    try:
        return _read(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}: {LINEAGE} doesn't say where it came from: {error!r}") from None


def _read(found: dict[str, Any]) -> Ancestry:
    rows, git = found["rows"], found["git"]
    return Ancestry(
        base=dict(found["base"]),
        rows=str(rows["digest"]),
        sources=[dict(source) for source in rows["sources"]],
        contamination=dict(rows.get("contamination") or {}),
        adapter=dict(found["adapter"]),
        teachers=[dict(teacher) for teacher in found.get("teachers") or []],
        generated=found.get("generated"),
        scores=dict(found["scores"]),
        commit=git.get("commit"),
        dirty=bool(git.get("dirty")),
        code=found.get("code"),
        lock=str(found["lock"]),
        libraries={str(name): str(value) for name, value in found["versions"].items()},
        seed=int(found["seed"]),
    )


def manifest_files(folder: Path) -> dict[str, str]:
    """Name -> sha256 of the files of a product's folder, as its manifest lists them."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {str(name): str(value) for name, value in manifest["files"].items()}
