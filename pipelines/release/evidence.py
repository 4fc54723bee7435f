"""What is known of a version: read from its own files, beside the tags that the registry keeps."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import product as products
from pipelines.errors import UserError
from pipelines.evaluation import record as table

SCORES = "artifacts/scores.json"
PAPERS = "artifacts/release"
VERDICTS = f"{PAPERS}/verdicts.parquet"
SEPARATOR = ", "  # between licences in a tag

Verdicts = dict[str, tuple[str | None, bool]]


@dataclass(frozen=True)
class Evidence:
    """A version as the gate sees it.

    `metrics` is empty where nothing was evaluated, `verdicts` None where none are kept. `adapter` is the digest of the
    adapter's own files, None where they aren't whole. `evaluated` is what the evaluation says it judged: `adapter` and
    `revision`.
    """

    uri: str
    digest: str
    tags: Mapping[str, str]
    metrics: dict[str, float]
    verdicts: Verdicts | None
    parity: dict[str, Any] | None
    lineage: dict[str, Any] | None
    adapter: str | None
    evaluated: Mapping[str, str]

    @property
    def heldout(self) -> str | None:
        return self.tags.get("heldout.digest")

    @property
    def licenses(self) -> dict[str, list[str]]:
        """Of base, data and teachers; empty where none is on record."""
        tags = {"base": "base.license", "data": "rows.licenses", "teachers": "teachers.licenses"}
        told = {of: self.tags.get(tag, "").split(SEPARATOR) for of, tag in tags.items()}
        return {of: [name for name in names if name] for of, names in told.items()}


def read(uri: str, digest: str, folder: Path, tags: Mapping[str, str], evaluated: Mapping[str, str]) -> Evidence:
    """What a version's files say; `folder` is a copy whose seal was checked.

    `evaluated` is what the run of the evaluation says it judged, used where the files don't say it themselves.
    """
    scores = _json(folder / SCORES) or {}
    metrics = {str(name): float(value) for name, value in (scores.get("metrics") or {}).items()}
    return Evidence(
        uri=uri,
        digest=digest,
        tags=dict(tags),
        metrics=metrics,
        verdicts=kept_verdicts(folder / VERDICTS),
        parity=_json(folder / PAPERS / "parity.json"),
        lineage=_json(folder / PAPERS / "lineage.json"),
        adapter=_adapter_digest(folder / "artifacts"),
        evaluated=dict(scores.get("evaluated") or evaluated),
    )


def kept_verdicts(path: Path) -> Verdicts | None:
    """Row -> group and verdict, of a version's table; rows without a verdict are left out. None without a table."""
    if not path.is_file():
        return None
    try:
        columns = pq.read_table(path, columns=["row_id", "group", "correct"]).to_pydict()
    except (pa.ArrowException, KeyError) as error:
        raise UserError(f"{path.name}: expected columns row_id, group and correct: {error}") from None
    rows = zip(columns["row_id"], columns["group"], columns["correct"], strict=True)
    return {str(row): (group, bool(correct)) for row, group, correct in rows if correct is not None}


def answered_verdicts(path: Path, subject: str) -> Verdicts:
    """Row -> group and verdict of a subject's held-out answers in a table of evaluate."""
    records, _ = table.read(path)
    found = table.of(records, table.HELDOUT, subject)
    return {one.row_id: (one.group or None, one.correct) for one in found if one.correct is not None}


def _adapter_digest(artifacts: Path) -> str | None:
    """Of the one product among the artifacts, every file of it checked; None where there is none, or it isn't whole."""
    found = list(artifacts.glob(f"*/{products.MANIFEST}"))
    try:
        return products.load(found[0].parent).digest if len(found) == 1 else None
    except UserError:
        return None


def _json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file, None without one. Raises UserError where it isn't one."""
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path.name}: expected a mapping in JSON: {error}") from None
