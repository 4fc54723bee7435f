"""Ending a process with all that it started, in whatever group or session that is by now."""

import contextlib
import os
import signal
from pathlib import Path


def kill_tree(pid: int, itself: bool = True) -> None:
    """SIGKILL to the process and its descendants; to the latter alone unless `itself`.

    Each is stopped before its children are listed: a stopped process starts none. The caller is the one who reaps
    `pid`, so that the number can't belong to another process by now.
    """
    if itself:
        _signal(pid, signal.SIGSTOP)
    for child in children(pid):
        kill_tree(child)
    if itself:
        _signal(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The processes that any thread of this one started; none where it is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def _signal(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
