"""Running a command and weighing it (wall time, CPU time, memory); and the parts of a benchmark."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Weighed:
    """`cpu_s` and `peak_mb` of the process itself; `tree_mb` is the largest sum over it and its children."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    tree_mb: float
    code: int
    output: str


def weigh(command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path) -> Weighed:
    """Runs the command to its end, its output in `log`."""
    begun = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        watcher = _Watcher(process.pid)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        watcher.stop()
    wall = time.monotonic() - begun
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    text = log.read_text(encoding="utf-8", errors="replace")
    return Weighed(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, watcher.peak_mb, code, text)


def succeeded(done: Weighed) -> Weighed:
    """What was weighed. Raises RuntimeError with the output's end where it failed."""
    if done.code:
        raise RuntimeError(f"exit code {done.code}:\n{done.output[-4000:]}")
    return done


class _Watcher(threading.Thread):
    """Samples the memory of a process tree: shared pages counted once (PSS)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak_mb = pid, 0.0
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(1.0):
            self.peak_mb = max(self.peak_mb, self._now() / 2**20)

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def _now(self) -> int:
        try:
            root = psutil.Process(self.pid)
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        return sum(_pss(process) for process in processes)


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0


def run_parts(parts: Mapping[str, Callable[[Path], dict[str, Any]]], names: Sequence[str]) -> None:
    """Measures the named parts, all without a name; prints a table and, as the last line, one JSON object."""
    unknown = [name for name in names if name not in parts]
    if unknown:
        sys.exit(f"no part {unknown[0]!r}; the parts are {', '.join(parts)}")
    figures: dict[str, Any] = {}
    for name in names or parts:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as temporary:
            figures |= parts[name](Path(temporary))
    for name, value in figures.items():
        print(f"{name:<20} {value}")
    print(json.dumps(figures))
