"""Stage prepare: a task's source files become the rows that training and evaluation read."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.dataset.defects import Defects
from pipelines.dataset.overlap import count_overlap
from pipelines.dataset.row import Row
from pipelines.dataset.rows import digest, write_rows
from pipelines.dataset.split import split_validation
from pipelines.errors import UserError
from pipelines.product import Product, file_hash
from pipelines.progress import say
from pipelines.tasks import resolve_verify
from pipelines.tasks.rows import SourceRows, build_rows, check_gold
from pipelines.tracking.run import Run

Splits = dict[str, list[Row]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written: rows and digest per split, training prompts that are held out as well."""

    folder: Path
    num_rows: dict[str, int]
    digests: dict[str, str]
    overlap_with_heldout: dict[str, int]


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Prepares the rows into `work` and logs them; returns their counts and digests."""
    prepared = prepare(config, work)
    for name, source in config.task.sources.items():
        run.input(name, resolve(source.path), file_hash(resolve(source.path)), source.split)
    run.metrics({f"rows/{split}": count for split, count in prepared.num_rows.items()})
    run.file(work / "summary.json")
    counts = ", ".join(f"{count:,} {split}" for split, count in prepared.num_rows.items())
    say(f"  {counts} rows")
    return {
        "num_rows": prepared.num_rows,
        "digests": prepared.digests,
        "overlap_with_heldout": prepared.overlap_with_heldout,
    }


def files(config: Config) -> dict[str, str | None]:
    """Hashes of the files that decide the rows; None for one that can't be read, which `run` will report."""
    paths = [source.path for source in config.task.sources.values()] + [config.task.labels or ""]
    found = {path: resolve(path) for path in paths if path}
    return {path: file_hash(file) if file.is_file() else None for path, file in found.items()}


def prepare(config: Config, folder: Path) -> Prepared:
    """Writes train.jsonl, validation.jsonl, heldout.jsonl and summary.json into the folder.

    The same sources, task and seed give the same bytes. Raises DataError with every defect of the
    source files before anything is written.
    """
    sources = _read(config)
    splits = _split(config, sources)
    digests = {split: digest(rows) for split, rows in splits.items()}
    overlap = {split: count_overlap(splits[split], splits["heldout"]) for split in ("train", "validation")}
    decline = config.task.decline_label
    summary = {
        "task": config.task.name,
        "seed": config.seed,
        "sources": {name: _source_summary(source) for name, source in sources.items()},
        "splits": {split: _split_summary(rows, digests[split], decline) for split, rows in splits.items()},
        "overlap_with_heldout": overlap,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        write_rows(folder, split, rows)
    text = json.dumps(summary, ensure_ascii=False, indent=2)
    (folder / "summary.json").write_text(f"{text}\n", encoding="utf-8")
    return Prepared(folder, {split: len(rows) for split, rows in splits.items()}, digests, overlap)


def _read(config: Config) -> dict[str, SourceRows]:
    verify = resolve_verify(config.task)
    defects = Defects(config.prepare.max_reported)
    sources = build_rows(config.task, config.seed, defects)
    for source in sources.values():
        check_gold(source.rows, verify, config.task.verify, defects)
    defects.raise_if_any()
    return sources


def _split(config: Config, sources: dict[str, SourceRows]) -> Splits:
    """Rows of each split sorted by id: any first n of them are a random sample, not one label."""
    given: Splits = {"train": [], "validation": [], "heldout": []}
    for source in sources.values():
        given[source.source.split] += source.rows
    train, validation = split_validation(given["train"], config.prepare.validation_share, config.seed)
    splits = {"train": train, "validation": validation + given["validation"], "heldout": given["heldout"]}
    for split in ("train", "heldout"):
        if not splits[split]:
            raise UserError(f"task.sources: no row is left for {split} after exclude and limit")
    return {split: sorted(rows, key=lambda row: row.id) for split, rows in splits.items()}


def _source_summary(source: SourceRows) -> dict[str, Any]:
    return {
        "path": source.source.path,
        "sha256": file_hash(resolve(source.source.path)),
        "license": source.source.license,
        "split": source.source.split,
        "num_read": source.num_read,
        "num_kept": len(source.rows),
    }


def _split_summary(rows: list[Row], rows_digest: str, decline_label: str | None) -> dict[str, Any]:
    labels = Counter(row.label for row in rows)
    return {
        "num_rows": len(rows),
        "digest": rows_digest,
        "num_out_of_scope": labels[decline_label] if decline_label is not None else 0,
        "labels": dict(sorted(labels.items())),
    }
