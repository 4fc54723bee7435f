"""The figures of data preparation: `python -m benchmarks.data`, or a part by name.

The parts: tokenise, packing, defects, gsm8k, planted, million.

Prints a table for people and, as its last line, one JSON object. Without names it measures every part. Ten million
rows are extrapolated from three sizes, because they take an hour. Nothing here needs a GPU.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data_defects, data_planted
from benchmarks.measure import Weighed, run_parts, weigh
from pipelines.config.paths import PROJECT

Figures = dict[str, Any]
SIZES = (100_000, 300_000, 1_000_000)
EXTRAPOLATED = 10_000_000
NUM_LABELS = 50
SEEDS = range(5)


def tokenise(temporary: Path) -> Figures:
    """Render, tokenise and mask against a per-row `datasets.map`, on GSM8K."""
    return _tokens("tokenise", temporary)


def packing(temporary: Path) -> Figures:
    """Padding of best-fit packing, and what changing one row does to the loss of others."""
    return _tokens("packing", temporary)


def _tokens(part: str, temporary: Path) -> Figures:
    # In a process of its own: what this one holds, the kernel counts as its children's peak.
    done = weigh([sys.executable, "-m", "benchmarks.data_tokens", part], PROJECT, {}, temporary / "tokens.log")
    if done.code:
        raise RuntimeError(done.output[-4000:])
    found: Figures = json.loads(done.output.splitlines()[-1])
    return {name: round(value, 4) for name, value in found.items()}


def defects(temporary: Path) -> Figures:
    """A thousand conversations with 25 planted defects: those told with line and reason, and how long it took."""
    planted = data_defects.write(temporary / "train.jsonl")
    held = [data_defects.sound(data_defects.NUM_RECORDS + number) for number in range(8)]
    _write(temporary / "heldout.jsonl", held)
    done = _prepare(temporary, "my_conversations", {"train": "train.jsonl", "heldout": "heldout.jsonl"}, 2)
    told = [line.partition("train.jsonl:")[2] for line in done.output.splitlines() if "train.jsonl:" in line]
    reasons = {int(line.split(":", 1)[0]): line for line in told}
    found = sum(defect.words in reasons.get(defect.line, "") for defect in planted)
    return {"defects_found": found, "defects_wall_s": round(done.wall_s, 2), "defects_cpu_s": round(done.cpu_s, 2)}


def gsm8k(temporary: Path) -> Figures:
    """GSM8K's training rows that share word n-grams with its test set, through the whole of `prepare`."""
    options = ["sft.trainer.max_length=768"]
    done = _prepare(temporary, "gsm8k", {}, 0, *options)
    found = _summary(temporary)["contamination"]["against"]["heldout"]
    return {
        "gsm8k_8gram": found["ngrams"]["8"],
        "gsm8k_13gram": found["ngrams"]["13"],
        "gsm8k_near": found["near"],
        "gsm8k_cpu_s": round(done.cpu_s, 1),
    }


def planted(temporary: Path) -> Figures:
    """50 held-out rows planted verbatim and 50 lightly edited among 10^5, through the whole of `prepare`.

    Of SEEDS data sets the worst of each figure.
    """
    found = [_planted_found(temporary / str(seed), seed) for seed in SEEDS]
    return {
        "planted_found": min(each[0] for each in found),
        "edited_found": min(each[1] for each in found),
        "false_alarms": max(each[2] for each in found),
        "edited_found_by_seed": [each[1] for each in found],
        "false_alarms_by_seed": [each[2] for each in found],
    }


def _planted_found(temporary: Path, seed: int) -> tuple[int, int, int]:
    """Verbatim and edited rows found, and false alarms."""
    temporary.mkdir()
    data = data_planted.planted(100_000, seed)
    _write(temporary / "train.jsonl", _records(data.train))
    _write(temporary / "heldout.jsonl", _records(data.heldout))
    files = {"train": "train.jsonl", "heldout": "heldout.jsonl"}
    _prepare(temporary, "my_routing", files, 0, "prepare.duplicates.near=off", "prepare.duplicates.exact=record")
    removed = (json.loads(line) for line in (_rows(temporary) / "removed.jsonl").read_text().splitlines())
    found = {int(each["source"].rpartition(":")[2]) - 1 for each in removed if each["reason"].startswith("contam")}
    kinds = {row: kind for row, (_, kind) in data.truth.items()}
    verbatim = sum(kinds.get(row) == "verbatim" for row in found)
    edited = sum(kinds.get(row, "verbatim") != "verbatim" for row in found)
    return verbatim, edited, len(found - kinds.keys())


def million(temporary: Path) -> Figures:
    """10^5, 3 x 10^5 and 10^6 short rows through the whole of `prepare`: CPU time and peak memory."""
    _write(temporary / "heldout.jsonl", _records(data_planted.heldout_texts("queries")))
    weighed: dict[int, Weighed] = {}
    for size in SIZES:
        _write(temporary / f"{size}.jsonl", _records(data_planted.rows(size, seed=7)))
        files = {"train": f"{size}.jsonl", "heldout": "heldout.jsonl"}
        weighed[size] = _prepare(temporary, "my_routing", files, 0, f"paths.rows={temporary / str(size)}")
        print(f"  {size:,} rows: {weighed[size].cpu_s:.0f} CPU-s, {weighed[size].peak_mb:.0f} MB", file=sys.stderr)
    smallest, largest = weighed[SIZES[0]], weighed[SIZES[-1]]
    power = _slope([math.log(size) for size in SIZES], [math.log(weighed[size].cpu_s) for size in SIZES])
    per_row = _slope(list(SIZES), [weighed[size].peak_mb * 2**20 for size in SIZES])
    further = EXTRAPOLATED - SIZES[-1]
    return {
        "million_cpu_s": round(largest.cpu_s, 1),
        "rss_growth": round(largest.peak_mb / smallest.peak_mb - 1, 3),
        "peak_mb_by_rows": {str(size): round(weighed[size].peak_mb) for size in SIZES},
        "cpu_s_by_rows": {str(size): round(weighed[size].cpu_s, 1) for size in SIZES},
        "cpu_exponent": round(power, 3),
        "bytes_per_row": round(per_row, 1),
        "ten_million_cpu_s": round(largest.cpu_s * (EXTRAPOLATED / SIZES[-1]) ** power),
        "ten_million_mb": round(largest.peak_mb + per_row * further / 2**20),
    }


def _slope(x: list[float] | list[int], y: list[float]) -> float:
    return float(np.polyfit(x, y, 1)[0])


def _records(texts: list[str] | Iterator[str]) -> Iterator[dict[str, str]]:
    for number, text in enumerate(texts):
        yield {"query": text, "label": f"queue_{number % NUM_LABELS}"}


def _write(path: Path, records: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(record)}\n" for record in records)


def _prepare(temporary: Path, task: str, files: dict[str, str], code: int, *overrides: str) -> Weighed:
    """Runs the command; raises where its exit code is another than `code`."""
    words = [f"task={task}", f"paths.rows={temporary / 'rows'}", "tracking.system_metrics=false", *overrides]
    words += [f"task.sources.{name}.path={temporary / file}" for name, file in files.items()]
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{temporary / 'mlflow.db'}"}
    command = [sys.executable, "-m", "pipelines", "prepare", *words]
    done = weigh(command, PROJECT, store, temporary / "prepare.log")
    if done.code != code:
        raise RuntimeError(f"exit code {done.code}, expected {code}:\n{done.output[-4000:]}")
    return done


def _rows(temporary: Path) -> Path:
    return next((temporary / "rows").glob("*/manifest.json")).parent


def _summary(temporary: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_rows(temporary) / "summary.json").read_text(encoding="utf-8"))
    return found


PARTS: dict[str, Callable[[Path], Figures]] = {
    "tokenise": tokenise,
    "packing": packing,
    "defects": defects,
    "gsm8k": gsm8k,
    "planted": planted,
    "million": million,
}


if __name__ == "__main__":
    run_parts(PARTS, sys.argv[1:])
