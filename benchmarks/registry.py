"""The figures of a release driven by the registry. `python -m benchmarks.registry [PART ...]`

Prints a table for people and, as its last line, one JSON object. The parts are refusals, races, package, secrets and
gguf; without names it measures all of them. `package` makes a virtual environment and `gguf` builds llama.cpp where
that isn't there yet, which takes minutes. What needs a GPU (vLLM on CUDA, FP8 and INT4 kernels) is left out.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import registry_gguf, registry_package, registry_races, registry_refusals, registry_secrets
from benchmarks.measure import run_parts

Figures = dict[str, Any]


def refusals(temporary: Path) -> Figures:
    """Versions that must not be promoted: each refused by the rule that is meant, the alias where it was."""
    return dict(registry_refusals.measure(temporary))


def races(temporary: Path) -> Figures:
    """Pairs of promoters that want one alias at once."""
    return dict(registry_races.measure(temporary))


def package(temporary: Path) -> Figures:
    """A version's size, the time that registering takes, and its answers in an environment of its own requirements."""
    return dict(registry_package.measure(temporary))


def secrets(temporary: Path) -> Figures:
    """Secrets of every kind planted wherever a user could put one, looked for in all that is kept and printed."""
    return dict(registry_secrets.measure(temporary))


def gguf(temporary: Path) -> Figures:
    """Greedy tokens of the GGUF file in llama.cpp against those of the adapter."""
    return dict(registry_gguf.measure(temporary))


PARTS: dict[str, Callable[[Path], Figures]] = {
    "refusals": refusals,
    "races": races,
    "package": package,
    "secrets": secrets,
    "gguf": gguf,
}


if __name__ == "__main__":
    run_parts(PARTS, sys.argv[1:])
