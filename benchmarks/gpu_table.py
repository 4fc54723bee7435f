"""Figures of GPU cells as Markdown."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_cells import CELLS, TRL, Cell
from benchmarks.gpu_predict import predicted

Record = dict[str, Any]
HEAD = (
    "cell | side | tok/s (least, most) | over trl, trl_bf16 | MFU | HFU | peak, reserved GiB | predicted GiB | "
    "recomputes | first step s"
)


def read(file: Path) -> list[Record]:
    """What the file holds, of each side of a cell the last; an error never stands over figures."""
    kept: dict[tuple[str, ...], Record] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        record = json.loads(line)
        key = (record["card"], record["cell"], record["side"], str(record["tiny"]))
        if "error" not in record or key not in kept or "error" in kept[key]:
            kept[key] = record
    return list(kept.values())


def table(records: Sequence[Record]) -> str:
    """One part a card: training, what a step of GRPO is made of, and an adapter's way."""
    parts = []
    for card in sorted({record["card"] for record in records}):
        found = [record for record in records if record["card"] == card]
        rates = sorted(record["matrix_tflops"] for record in found)
        versions = ", ".join(f"{name} {version}" for name, version in found[-1]["versions"].items())
        parts.append(f"{card}; bf16 matrix product {rates[0]:g} to {rates[-1]:g} TFLOP/s; {versions}.")
        parts += [text for text in (_training(found), _split(found), _adapters(found), _errors(found)) if text]
    return "\n\n".join(parts)


def _training(found: Sequence[Record]) -> str:
    by = {(record["cell"], record["side"]): record for record in found if "tokens_per_s" in record}
    rows = []
    for cell in CELLS.values():
        for side in cell.sides:
            if record := by.get((cell.name, side)):
                rows.append(_trained(cell, record, [by.get((cell.name, other)) for other in TRL]))
    return _rows(HEAD, rows) if rows else ""


def _trained(cell: Cell, record: Record, theirs: Sequence[Record | None]) -> tuple[str, ...]:
    middle, least, most = record["tokens_per_s"]
    over = "" if record["side"] in TRL else " / ".join(f"{middle / r['tokens_per_s'][0]:.2f}" for r in theirs if r)
    bar = f", bar {cell.target:,}" if cell.target and record["side"] == "tunesmith" else ""
    held, reserved = record["peak_allocated_gib"], record["peak_reserved_gib"]
    peak = "" if held is None else f"{held}, {reserved}"
    return (
        f"{cell.name} {record['length']} x {record['batch']}",
        record["side"],
        f"{middle:,.0f} ({least:,.0f}, {most:,.0f}){bar}",
        over,
        _share(record, "model_tflops"),
        _share(record, "hardware_tflops"),
        peak,
        _or_nothing(None if record["tiny"] else predicted(cell, record["side"], record["checkpointing"])),
        record["checkpointing"],
        f"{record['first_step_s']:.1f}",
    )


def _split(found: Sequence[Record]) -> str:
    cells = [record for record in found if "split_s" in record]
    if not cells:
        return ""
    parts = list(cells[0]["split_s"])
    rows = [
        (
            *(r["cell"], r["side"], f"{r['step_s'][0]:.2f}", f"{r['answer_tokens_per_s']:,.0f}"),
            *(f"{r['split_s'][part]:.3f}" for part in parts),
            _or_nothing(r["peak_allocated_gib"]),
        )
        for r in cells
    ]
    return _rows(f"cell | side | step s | answer tok/s | {' | '.join(parts)} | peak GiB", rows)


def _adapters(found: Sequence[Record]) -> str:
    cells = [record for record in found if "merge_s" in record]
    names = ("save_s", "load_s", "merge_s", "adapter_mb", "merge_relative_change", "peak_allocated_gib")
    rows = [(CELLS[r["cell"]].shape, *(_or_nothing(r[name]) for name in names)) for r in cells]
    return _rows(" | ".join(("adapter of", *names)), rows) if rows else ""


def _errors(found: Sequence[Record]) -> str:
    return "\n".join(f"{r['cell']}, {r['side']}: {r['error']}" for r in found if "error" in r)


def _share(record: Record, name: str) -> str:
    return f"{record[name] / record['matrix_tflops']:.0%}" if name in record else ""


def _or_nothing(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _rows(head: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {head} |", "|" + "---|" * len(head.split(" | ")), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
