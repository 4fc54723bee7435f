"""The figures of scaling and surviving. `python -m benchmarks.compute [PART ...]`

Prints a table for people and, as its last line, one JSON object. The parts are kills, damage, equivalence and plan;
without names it measures all of them. What needs a GPU is in `benchmarks/gpu.py`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import compute_damage, compute_equivalence, compute_kills, plan
from benchmarks.measure import run_parts

Figures = dict[str, Any]
KILLS = 20  # at random moments, and as many inside a save


def kills(temporary: Path) -> Figures:
    """Trainings ended by SIGKILL and begun again: whether their adapter is the uninterrupted one's, byte for byte."""
    return dict(compute_kills.measure(temporary, KILLS))


def damage(temporary: Path) -> Figures:
    """Each file of the newest checkpoint truncated, with one bit flipped, and missing."""
    return dict(compute_damage.measure(temporary))


def equivalence(temporary: Path) -> Figures:
    """The loss of every step under other micro-batches and with two processes, in float32."""
    return dict(compute_equivalence.measure(temporary))


def predicted(temporary: Path) -> Figures:
    """The plan's CPU time, and its peaks against published and simulated ones."""
    return {name: value for name, value in plan.measure().items() if name != "rows"}  # those are in plan.md


PARTS: dict[str, Callable[[Path], Figures]] = {
    "kills": kills,
    "damage": damage,
    "equivalence": equivalence,
    "plan": predicted,
}


if __name__ == "__main__":
    run_parts(PARTS, sys.argv[1:])
