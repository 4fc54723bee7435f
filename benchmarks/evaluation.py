"""The figures of evaluation. `python -m benchmarks.evaluation [harness] [order] [coverage] [suite]`

Prints a table for people and, as its last line, one JSON object. Without names it measures every part. Larger models,
GPUs and vLLM are left out: they need a GPU.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.evaluation_coverage import coverage as covered
from benchmarks.measure import run_parts, succeeded, weigh
from pipelines.config.paths import PROJECT

Figures = dict[str, Any]
NOMINAL = 0.95


def harness(temporary: Path) -> Figures:
    """Side by side with lm-eval's own backend on the same local tasks; the ratio is the least of them all."""
    found: Figures = _apart("agreement")
    return {
        "lm_eval_speed_ratio": found.pop("harness_ratio_min"),
        "lm_eval_disagreements": found.pop("harness_disagreements"),
        "loglik_max_diff": found.pop("harness_loglik_apart"),
    } | found


def order(temporary: Path) -> Figures:
    """Rows whose answer depends on the batch size or on the rows' order."""
    return {"order_differences": _apart("order_differences")}


def _apart(part: str) -> Any:
    # What loads torch runs in a process of its own: a large parent's memory counts as its children's peak.
    command = [sys.executable, "-m", "benchmarks.evaluation_harness", part]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def coverage(temporary: Path) -> Figures:
    """The coverage of every kind of interval; `ci_coverage` is the one that is furthest from 95 %."""
    found = covered()
    asked = {name: value for name, value in found.items() if not name.endswith("naive")}
    worst = max(asked.values(), key=lambda value: abs(value - NOMINAL))
    return {f"coverage_{name}": value for name, value in found.items()} | {"ci_coverage": worst}


def suite(temporary: Path) -> Figures:
    """The default suite on the embedded default: base and trained adapter, in a process of its own."""
    words = [f"paths.{name}={temporary / name}" for name in ("rows", "adapters", "outputs")]
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{temporary / 'mlflow.db'}"}
    for stage in ("prepare", "sft"):
        succeeded(weigh([sys.executable, "-m", "pipelines", stage, *words], PROJECT, store, temporary / "stage.log"))
    command = [sys.executable, "-m", "pipelines", "evaluate", *words]
    done = succeeded(weigh(command, PROJECT, store, temporary / "evaluate.log"))
    (manifest,) = (temporary / "outputs/scores").glob("*/manifest.json")
    metrics = json.loads(manifest.read_text(encoding="utf-8"))["about"]["metrics"]
    shown = ("correctness/accuracy", "refusal/decline_rate", "red_team/attack_success_rate", "robustness/consistency")
    figures = {name.partition("/")[2]: round(metrics[f"eval/{name}"], 4) for name in shown}
    return {"suite_s": round(done.wall_s, 1), "suite_cpu_s": round(done.cpu_s, 1), "suite_mb": round(done.peak_mb)} | {
        f"suite_{name}": value for name, value in figures.items()
    }


PARTS: dict[str, Callable[[Path], Figures]] = {
    "harness": harness,
    "order": order,
    "coverage": coverage,
    "suite": suite,
}


if __name__ == "__main__":
    run_parts(PARTS, sys.argv[1:])
