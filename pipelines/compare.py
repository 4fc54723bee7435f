"""past evaluations of one held-out set -> a leaderboard."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.evaluation.findings import read
from pipelines.evaluation.leaderboard import Entry, Past, leaderboard
from pipelines.product import Product
from pipelines.progress import say
from pipelines.tracking.evaluations import Evaluation, past_evaluations
from pipelines.tracking.run import Run, finite


def unneeded(config: Config) -> tuple[str, ...]:
    """A digest takes the place of this configuration's rows."""
    return ("rows",) if config.compare.rows else ()


def is_current(config: Config, found: Product) -> bool:
    """Never: there may be new runs."""
    return False


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Writes and prints the leaderboard; returns its order."""
    heldout = config.compare.rows or str(inputs["rows"].about["digests"]["heldout"])
    past = past_evaluations(heldout, config.compare.runs)
    entries = leaderboard((Past(one.run_id, one.begun, *read(one.table)) for one in past), config.compare.metric)
    board = {
        "heldout": past[0].heldout,
        "metric": config.compare.metric,
        "runs": [one.run_id for one in past],
        "entries": [entry.record() for entry in entries],
    }
    path = work / "leaderboard.json"
    path.write_text(json.dumps(board, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    run.file(path)
    run.tags({"eval.heldout": past[0].heldout})
    run.metrics(finite({f"leader/{name}": value for name, value in entries[0].record()["metrics"].items()}))
    for line in _table(past, entries, config.compare.metric):
        say(f"  {line}")
    return {"heldout": past[0].heldout, "order": [f"{entry.subject} ({entry.run_id})" for entry in entries]}


def _table(past: Sequence[Evaluation], entries: Sequence[Entry], metric: str) -> list[str]:
    """Aligned columns, the leader first."""
    head = ("", "subject", metric.removeprefix("eval/"), "against the leader", "p50", "what", "run")
    lines = [head, *((str(place), *_cells(entry)) for place, entry in enumerate(entries, start=1))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    count = f"{len(past)} run{'' if len(past) == 1 else 's'} of evaluate on held-out rows {past[0].heldout[:12]}"
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [count, *rows]


def _cells(entry: Entry) -> tuple[str, ...]:
    measure, p50 = entry.measure, entry.measures.get("cost/latency_p50")
    bounds = "" if measure.low is None or measure.high is None else f" [{measure.low:.4f}, {measure.high:.4f}]"
    gain = entry.against_leader
    told = (
        ""
        if gain is None
        else f"{gain.difference.value:+.4f} [{gain.difference.low:+.4f}, {gain.difference.high:+.4f}]"
    )
    what = entry.about.get("version") or entry.about.get("endpoint") or entry.about.get("model", "")
    adapter = entry.about.get("adapter digest", "")[:8]
    return (
        entry.subject,
        f"{measure.value:.4f}{bounds} (n={measure.num_rows:,})",
        told,
        "" if p50 is None else f"{1000 * p50.value:.0f} ms",
        f"{what}{' + ' if adapter else ''}{adapter}",
        entry.run_id[:8],
    )
