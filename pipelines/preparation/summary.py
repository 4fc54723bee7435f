"""What prepare did, as one mapping: `summary.json`, from which the report is drawn."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pipelines.config.schema import Config
from pipelines.preparation.intake import SPLITS, Intake
from pipelines.preparation.parts import fixed_product
from pipelines.preparation.pool import Pool

MOST_LABELS = 1000  # a task whose answers are all its labels has no use for a table of them


def begun(taken: Intake) -> list[dict[str, Any]]:
    """The funnel's first steps, which happened while the sources were read."""
    rows = sum(source.num_read for source in taken.sources.values())
    steps: list[dict[str, Any]] = [{"step": "records read", "rows": rows}]
    removed = {
        "defective records": sum(source.num_defective for source in taken.sources.values()),
        "excluded labels": sum(source.num_left_out for source in taken.sources.values()),
        **{f"filter {name}": count for name, count in taken.filtered.items()},
    }
    for name, count in removed.items():
        if count:
            rows -= count
            steps.append({"step": name, "removed": count, "rows": rows})
    return steps


def summarise(
    config: Config, taken: Intake, pool: Pool, found: Mapping[str, Any], digests: Mapping[str, str]
) -> dict[str, Any]:
    """The summary of everything, in the order of the steps."""
    summary: dict[str, Any] = {
        "task": config.task.name,
        "seed": config.seed,
        "config": config.prepare.model_dump(),
        "sources": _sources(taken, pool),
        "funnel": pool.funnel,
        "splits": {split: _split(config, pool, code, digests[split]) for code, split in enumerate(SPLITS)},
        "redacted": dict(sorted(taken.redacted.items())),
        "languages": dict(sorted(taken.languages.items())),
        "quarantine": {"num_records": taken.num_quarantined, "reasons": dict(taken.quarantined.most_common())},
        "num_length_unchecked": taken.num_unchecked,
        **found,
    }
    if fixed := fixed_product(config.prepare.heldout):
        before = json.loads(fixed.file("summary.json").read_text(encoding="utf-8"))
        summary["splits"]["heldout"] = before["splits"]["heldout"]
    return summary


def _sources(taken: Intake, pool: Pool) -> dict[str, Any]:
    kept = np.bincount(pool.spool.column("origin")[pool.alive], minlength=len(taken.sources))
    described = {}
    for number, (name, source) in enumerate(taken.sources.items()):
        known = source.num_defective + source.num_left_out
        described[name] = asdict(source) | {
            "num_kept": int(kept[number]),
            "num_left_out": source.num_read - known - int(kept[number]) + source.num_left_out,
        }
    return described


def _split(config: Config, pool: Pool, code: int, digest: str) -> dict[str, Any]:
    labels = pool.spool.column("label")[pool.alive & (pool.split == code)]
    counts = np.bincount(labels, minlength=len(pool.spool.labels))
    held = {pool.spool.labels[code]: int(counts[code]) for code in np.flatnonzero(counts)}
    named = Counter({label: count for label, count in held.items() if label})
    return {
        "num_rows": len(labels),
        "digest": digest,
        "num_out_of_scope": named[config.task.decline_label] if config.task.decline_label else 0,
        "num_labels": len(named),
        "labels": dict(sorted(named.items())) if len(named) <= MOST_LABELS else {},
    }
