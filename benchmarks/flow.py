"""Stages run one by one as a user runs them, each timed in a process of its own."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import succeeded, weigh
from pipelines.config.paths import PROJECT

ACCURACY = "eval/correctness/accuracy"
ACCURACY_ONLY = tuple(
    f"evaluate.{name}"
    for name in ("calibration.confidence=none", "robustness.rows=null", "red_team.wraps=null", "cost.rows=null")
)


def run_stages(temporary: Path, overrides: Sequence[str], stages: Sequence[str]) -> Mapping[str, float]:
    """Wall seconds of each stage; all that they write lies in `temporary`."""
    temporary.mkdir(exist_ok=True)
    words = [f"paths.{name}={temporary / name}" for name in ("rows", "adapters", "outputs")]
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{temporary / 'mlflow.db'}"}
    timed = {}
    for stage in stages:
        command = [sys.executable, "-m", "pipelines", stage, *words, *overrides, *ACCURACY_ONLY]
        timed[stage] = succeeded(weigh(command, PROJECT, store, temporary / f"{stage}.log")).wall_s
    return timed


def about(folder: Path) -> Mapping[str, Any]:
    """What the manifest of the one product below `folder` says."""
    (manifest,) = folder.glob("*/manifest.json")
    found: Mapping[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))["about"]
    return found
