"""The stage `sft` beside a bare TRL + peft script in one run: same rows, model, batch, steps and seed.

usage: python -m benchmarks.beside [ROUNDS] [OVERRIDE ...]

The sides take turns, and each round begins with the other one. Prints a table with ratios, the machine, and as its
last line one JSON object. Ratios are of medians over the rounds; over 1 is to tunesmith's credit for what is fast, and
to its debit for what is spent.
"""

import json
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import succeeded, weigh
from pipelines.config.paths import PROJECT

ROUNDS = 2
STEPS = 120
SHORT = (f"sft.trainer.max_steps={STEPS}", "+sft.trainer.logging_first_step=true")
NAMES = {
    "tokens_per_s": "tokens a second, training alone",
    "rows_per_s": "rows a second, training alone",
    "first_step_s": "seconds from the start to the first step's end",
    "wall_s": "seconds of the whole command",
    "cpu_s": "CPU seconds of the whole command",
    "peak_mb": "peak memory, MB",
    "loss": "last training loss",
    "eval_loss": "last validation loss",
}


@dataclass(frozen=True)
class Side:
    """One training as a user starts it, weighed from outside; `adapter` is where its weights lie."""

    tokens_per_s: float
    rows_per_s: float
    first_step_s: float
    wall_s: float
    cpu_s: float
    peak_mb: float
    loss: float
    eval_loss: float
    losses: tuple[float, ...]
    adapter: Path


class Bench:
    """Rows, a store and a resolved configuration that both sides are given."""

    def __init__(self, temporary: Path, overrides: Sequence[str]) -> None:
        self.temporary, self.overrides = temporary, list(overrides)
        self.places = [f"paths.{name}={temporary / name}" for name in ("rows", "adapters", "outputs")]
        self.store = {"MLFLOW_TRACKING_URI": f"sqlite:///{temporary / 'mlflow.db'}"}
        prepare = [sys.executable, "-m", "pipelines", "prepare", *self.places, *overrides]
        succeeded(weigh(prepare, PROJECT, self.store, temporary / "prepare.log"))
        self.rows = next(temporary.glob("rows/*/manifest.json")).parent
        self.config = temporary / "config.yaml"
        words = [sys.executable, "-m", "pipelines", "sft", "--cfg", "job", *overrides]
        done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=True)
        self.config.write_text(done.stdout, encoding="utf-8")

    def ours(self, turn: int) -> Side:
        """`python -m pipelines sft`, with its run, audit and checks."""
        adapters = self.temporary / f"adapters-{turn}"
        words = [sys.executable, "-m", "pipelines", "sft", *self.places, f"paths.adapters={adapters}", *self.overrides]
        begun = time.time()
        done = succeeded(weigh(words, PROJECT, self.store, self.temporary / f"sft-{turn}.log"))
        folder = next(adapters.glob("*/manifest.json")).parent
        history = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        run = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["made_by"]["run_id"]
        with sqlite3.connect(f"file:{self.temporary / 'mlflow.db'}?mode=ro", uri=True) as store:
            first = store.execute(
                "SELECT min(timestamp) FROM metrics WHERE run_uuid = ? AND key = 'sft/loss'", (run,)
            ).fetchone()[0]
            seconds = store.execute(
                "SELECT value FROM metrics WHERE run_uuid = ? AND key = 'sft/train_seconds'", (run,)
            ).fetchone()[0]
        return self._side(done, history, seconds, first / 1000 - begun, folder)

    def bare(self, turn: int) -> Side:
        """`benchmarks/bare_sft.py`."""
        folder = self.temporary / f"bare-{turn}"
        words = [sys.executable, "-m", "benchmarks.bare_sft", str(self.config), str(self.rows), str(folder)]
        begun = time.time()
        done = succeeded(weigh(words, PROJECT, {}, self.temporary / f"bare-{turn}.log"))
        history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        seconds = next(entry["train_runtime"] for entry in history if "train_runtime" in entry)
        first = float((folder / "first_step.txt").read_text(encoding="utf-8")) - begun
        return self._side(done, history, seconds, first, folder)

    def _side(self, done: Any, history: list[dict[str, float]], seconds: float, first: float, folder: Path) -> Side:
        losses = [entry["loss"] for entry in history if "loss" in entry]
        batch = _rows_per_step(self.config)
        steps = max(int(entry.get("step", 0)) for entry in history)
        return Side(
            tokens_per_s=max(entry.get("num_tokens", 0.0) for entry in history) / seconds,
            rows_per_s=steps * batch / seconds,
            first_step_s=first,
            wall_s=done.wall_s,
            cpu_s=done.cpu_s,
            peak_mb=done.peak_mb,
            loss=losses[-1],
            eval_loss=[entry["eval_loss"] for entry in history if "eval_loss" in entry][-1],
            losses=tuple(losses),
            adapter=folder / "adapter_model.safetensors",
        )


def _rows_per_step(config: Path) -> int:
    import yaml

    trainer = yaml.safe_load(config.read_text(encoding="utf-8"))["sft"]["trainer"]
    return int(trainer["per_device_train_batch_size"]) * int(trainer["gradient_accumulation_steps"])


def compare(temporary: Path, rounds: int, overrides: Sequence[str] = ()) -> tuple[list[Side], list[Side]]:
    """Both sides `rounds` times, the order turned about in each."""
    bench = Bench(temporary, overrides)
    ours: list[Side] = []
    bare: list[Side] = []
    for turn in range(rounds):
        for name in ("ours", "bare") if turn % 2 == 0 else ("bare", "ours"):
            print(f"round {turn + 1} of {rounds}: {name} ...", file=sys.stderr, flush=True)
            (ours if name == "ours" else bare).append(getattr(bench, name)(turn))
    return ours, bare


def figures(ours: Sequence[Side], bare: Sequence[Side]) -> dict[str, Any]:
    """Ratios of medians, each side's medians, and how far apart what was learnt is."""
    found: dict[str, Any] = {}
    for name in NAMES:
        left, right = (statistics.median(asdict(side)[name] for side in sides) for sides in (ours, bare))
        found |= {f"{name}_ratio": round(left / right, 3), f"sft_{name}": left, f"bare_{name}": right}
    found["loss_max_diff"] = max(
        abs(left - right)
        for a, b in zip(ours, bare, strict=True)
        for left, right in zip(a.losses, b.losses, strict=True)
    )
    found["bit_identical"] = len({side.adapter.read_bytes() for side in (*ours, *bare)}) == 1
    return found


def machine() -> str:
    """Processor, cores, memory and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "trl", "peft"))
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores of {name}, {memory:.0f} GB; Python {platform.python_version()}, {packages}"


def _table(found: dict[str, Any], ours: Sequence[Side], bare: Sequence[Side]) -> str:
    lines = [f"{'':<48}{'tunesmith':>24}{'TRL + peft':>24}{'ratio':>8}"]
    for name, text in NAMES.items():
        spread = [_spread([asdict(side)[name] for side in sides]) for sides in (ours, bare)]
        lines.append(f"{text:<48}{spread[0]:>24}{spread[1]:>24}{found[f'{name}_ratio']:>8.3f}")
    lines.append(f"largest difference of a logged loss: {found['loss_max_diff']:g}")
    lines.append(f"adapters byte for byte the same: {found['bit_identical']}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:,.4g} ({min(values):,.4g}..{max(values):,.4g})"


def main(words: Sequence[str]) -> None:
    """All of it."""
    rounds = int(words[0]) if words and words[0].isdigit() else ROUNDS
    overrides = [word for word in words if not word.isdigit()]
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as temporary:
        ours, bare = compare(Path(temporary), rounds, [*SHORT, *overrides])
        found = figures(ours, bare)
    print(_table(found, ours, bare))
    print(machine())
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
