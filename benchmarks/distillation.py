"""The figures of distillation. `python -m benchmarks.distillation [PART ...]`

Prints a table for people and, as its last line, one JSON object. The parts are gain, divergence and endpoint; without
names it measures all of them. `python -m benchmarks.distillation methods` trains by every method and takes longer.
Larger models, quantised teachers and vLLM are left out: they need a GPU.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import distillation_divergence, distillation_endpoint, distillation_methods
from benchmarks.flow import ACCURACY, about, run_stages
from benchmarks.measure import run_parts

Figures = dict[str, Any]
STUDENT = ("model=tiny_quarter", "experiment=distill")


def gain(temporary: Path) -> Figures:
    """A student of a quarter the size: by its own SFT, then on-policy from the tuned default; paired with its SFT."""
    run_stages(temporary / "teacher", (), ("prepare", "sft", "evaluate", "package", "promote"))
    (teacher,) = (temporary / "teacher/adapters").glob("*")
    learnt = (*STUDENT, "teacher.kind=adapter", f"teacher.at={teacher}")
    timed = run_stages(temporary / "student", learnt, ("prepare", "sft", "distill", "evaluate"))
    scores = about(temporary / "student/outputs/scores")
    taught = about(temporary / "teacher/outputs/scores")
    return {
        "gain": round(scores["metrics"][f"{ACCURACY}_vs_parent"], 4),
        "gain_low": round(scores["metrics"][f"{ACCURACY}_vs_parent_low"], 4),
        "gain_before": round(scores["subjects"]["parent"][ACCURACY], 4),
        "gain_after": round(scores["subjects"]["adapter"][ACCURACY], 4),
        "gain_teacher": round(taught["subjects"]["adapter"][ACCURACY], 4),
        "train_s": round(timed["distill"], 1),
        "sft_s": round(timed["sft"], 1),
    }


def divergence(temporary: Path) -> Figures:
    """TRL's divergence against a reference, its memory, and what stored distributions take."""
    return distillation_divergence.measure()


def endpoint(temporary: Path) -> Figures:
    """A teacher at an endpoint: slots that stand free, and a server that is away for half a minute."""
    return {f"endpoint_{name}": value for name, value in distillation_endpoint.measure().items()}


PARTS: dict[str, Callable[[Path], Figures]] = {"gain": gain, "divergence": divergence, "endpoint": endpoint}


# Left out where no part is named: half an hour.
LONGER: dict[str, Callable[[Path], Figures]] = {"methods": distillation_methods.measure}


if __name__ == "__main__":
    run_parts(PARTS | LONGER if sys.argv[1:] else PARTS, sys.argv[1:])
