"""The figures of the main job. `python -m benchmarks.main_job [flow] [cli] [mutations] [overhead]`

Prints a table for people and, as its last line, one JSON object. Without names it measures every part. GPU
figures are left out: they need a GPU.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import mutations as every_mutation
from benchmarks.beside import compare, figures
from benchmarks.measure import run_parts, succeeded, weigh
from pipelines.config.paths import PROJECT

PYTHON = sys.executable
HEAVY = ("torch", "transformers", "mlflow", "datasets")
MISTAKES: tuple[tuple[str, ...], ...] = (
    ("--help",),
    ("finetune", "--cfg", "job"),
    ("finetune", "sft.trainer.learning_rat=1e-3"),
    ("finetune", "sft.trainer.learning_rate=fast"),
    ("finetune", "model=qwen4"),
)

Figures = dict[str, Any]


def flow(temporary: Path) -> Figures:
    """`make finetune` in a fresh clone with an empty environment, twice."""
    clone = temporary / "clone"
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
    environment = {"MLFLOW_ENV_ROOT": str(temporary / "envs"), "MLFLOW_TRACKING_URI": "", "VIRTUAL_ENV": ""}
    cold = succeeded(weigh(["make", "finetune"], clone, environment, temporary / "cold.log"))
    warm = succeeded(weigh(["make", "finetune"], clone, environment, temporary / "warm.log"))
    if warm.output.count(": reused from run") != 5:
        raise RuntimeError(f"the second run made something anew:\n{warm.output}")
    scores = _manifest(clone / "outputs/scores")["about"]
    steps = re.search(r"steps in (\d+) s", cold.output)
    return {
        "cold_s": round(cold.wall_s, 1),
        "warm_s": round(warm.wall_s, 1),
        "peak_mb": round(max(cold.tree_mb, warm.tree_mb)),
        "accuracy_base": scores["subjects"]["base"]["eval/correctness/accuracy"],
        "accuracy_adapter": scores["metrics"]["eval/correctness/accuracy"],
        "train_s": int(steps[1]) if steps else None,
    }


def cli(temporary: Path) -> Figures:
    """The dearest of help, `--cfg job` and three mistakes, and what heavy it imported."""
    spent, heavy = 0.0, 0
    for words in MISTAKES:
        done = weigh([PYTHON, "-m", "pipelines", *words], PROJECT, {}, temporary / "cli.log")
        if done.code not in (0, 2) or "Traceback" in done.output:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.code}\n{done.output}")
        spent = max(spent, done.cpu_s)
        heavy += len(_heavy_imports(words))
    return {"cli_cpu_s": round(spent, 2), "cli_heavy_imports": heavy}


def _heavy_imports(words: tuple[str, ...]) -> list[str]:
    code = (
        "import sys, pipelines.__main__ as launcher; launcher.run(sys.argv[1:]); "
        f"print('imported', *(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([PYTHON, "-c", code, *words], cwd=PROJECT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def mutations(temporary: Path) -> Figures:
    """Every key of every shipped configuration file misspelled, and every value of a wrong type or range."""
    outcomes = every_mutation.run(list(every_mutation.mutations()))
    return {"mutations": len(outcomes), "mutations_refused": sum(outcome.refused for outcome in outcomes)}


def overhead(temporary: Path) -> Figures:
    """The sft stage against a bare TRL + peft script: same rows, seed and settings, once each and to the end."""
    found = figures(*compare(temporary, rounds=1))
    return {
        "overhead_cpu": found["cpu_s_ratio"],
        "overhead_rss": found["peak_mb_ratio"],
        "bit_identical": found["bit_identical"],
        "sft_cpu_s": round(found["sft_cpu_s"], 1),
        "bare_cpu_s": round(found["bare_cpu_s"], 1),
        "sft_peak_mb": round(found["sft_peak_mb"]),
        "bare_peak_mb": round(found["bare_peak_mb"]),
    }


def _manifest(folder: Path) -> Any:
    return json.loads(next(folder.glob("*/manifest.json")).read_text(encoding="utf-8"))


PARTS: dict[str, Callable[[Path], Figures]] = {
    "cli": cli,
    "mutations": mutations,
    "overhead": overhead,
    "flow": flow,
}


if __name__ == "__main__":
    run_parts(PARTS, sys.argv[1:])
