"""The launcher with little memory from the moment on at which training begins.

usage: python -m tests.small_memory MEGABYTES STAGE OVERRIDES...
"""

import resource
import sys
from pathlib import Path
from typing import Any

from pipelines import __main__ as launcher
from pipelines.policy import fit


def held() -> int:
    """Bytes of memory that the process has asked for itself."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")) * 1024


def limited(megabytes: int) -> None:
    """Lets `fit` begin with no more than so many megabytes beside what is held; an attempt after it has no more."""
    begin = fit.planned_steps

    def planned_steps(trainer: Any) -> int:
        if resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_DATA, (held() + megabytes * 2**20, resource.RLIM_INFINITY))
        return begin(trainer)

    fit.planned_steps = planned_steps


if __name__ == "__main__":
    limited(int(sys.argv[1]))
    raise SystemExit(launcher.run(sys.argv[2:]))
