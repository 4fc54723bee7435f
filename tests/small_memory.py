"""The launcher with little memory while it trains.

usage: python -m tests.small_memory MEGABYTES STAGE OVERRIDES...
"""

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines import __main__ as launcher
from pipelines.policy import fit, out_of_memory


def held() -> int:
    """Bytes of memory that the process has asked for itself."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")) * 1024


def limited(megabytes: int) -> None:
    """Lets training have no more than so many megabytes beside what is held when the first one begins.

    Between attempts all is allowed: loading starts threads, whose stacks count as well.
    """
    inner, most = out_of_memory.told_if_too_large, []

    @contextlib.contextmanager
    def told_if_too_large(trainer: Any, start: int) -> Iterator[None]:
        most.append(held() + megabytes * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (most[0], resource.RLIM_INFINITY))
        try:
            with inner(trainer, start):
                yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    vars(fit)["told_if_too_large"] = told_if_too_large


if __name__ == "__main__":
    limited(int(sys.argv[1]))
    raise SystemExit(launcher.run(sys.argv[2:]))
