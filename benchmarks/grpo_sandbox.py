"""Programs per second of one worker: a bubblewrap process for each program, against the sandbox's warm interpreter.

`bwrap` has the assertions inside, so a program can forge its success; `apart` keeps the expected values outside, as the
sandbox does; `fresh` gives each program new namespaces, `shared` one set to all. All ways run the same small program
with its tests, take turns in short rounds, and are compared round by round, because a busy machine slows them alike.
CPU seconds are those of the whole tree of processes, the benchmark's own included; namespaces that the kernel takes
down later are in the wall time only. `python -m benchmarks.grpo_sandbox`.
"""

import ctypes
import json
import os
import resource
import secrets
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import yaml

from pipelines.config import schema
from pipelines.config.paths import CONF, PROJECT
from pipelines.sandbox import bubblewrap, program
from pipelines.sandbox.sandbox import Sandbox
from pipelines.sandbox.split import split

PROGRAM = "def double(x):\n    return [2 * x]\n"
TESTS = ["assert double(1) == [2]", "assert double(2) == [4]", "assert double(-1) == [-2]"]
WAYS = ("bwrap", "apart", "fresh", "shared")
ROUNDS = 9
ROUND_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36

Way = tuple[Callable[[], None], Callable[[], float]]  # one program; the CPU seconds of all processes so far


def settings(*, fresh: bool) -> schema.Sandbox:
    """The shipped settings."""
    block = yaml.safe_load((CONF / "verifier.yaml").read_text(encoding="utf-8"))["sandbox"]
    return schema.Sandbox.model_validate(block | {"backend": "bubblewrap", "url": None, "fresh_namespaces": fresh})


def one_bwrap() -> Way:
    """A bubblewrap process a program, with the sandbox's own mounts and namespaces, but no limits and no filters."""
    command = [*bubblewrap.within(PROJECT).command, bubblewrap.interpreter(), "-I", "-S", "-c"]

    def run() -> None:
        nonce = secrets.token_hex(16)
        source = "\n".join([PROGRAM, *TESTS, f"print({nonce!r})"])
        done = subprocess.run([*command, source], capture_output=True, check=True, env=bubblewrap.ENVIRONMENT)
        assert done.stdout.decode().strip() == nonce
        _reap()

    return run, lambda: _own() + _seconds(resource.getrusage(resource.RUSAGE_CHILDREN))


def one_bwrap_apart() -> Way:
    """A bubblewrap process a program that tells its results as the sandbox's forks do: expected values stay outside.

    The comparison is in this process, and costs nothing here.
    """
    driver = Path(program.__file__).read_text(encoding="utf-8")
    command = [*bubblewrap.within(PROJECT).command, bubblewrap.interpreter(), "-I", "-S", "-c"]
    calls = [[slot.sources() for slot in part.slots] for part in split("", tuple(TESTS))]

    def run() -> None:
        nonce = secrets.token_hex(16)
        request = json.dumps({"nonce": nonce, "code": PROGRAM, "setup": "", "calls": calls})
        source = f"{driver}\nprint_results({request!r})"
        done = subprocess.run([*command, source], capture_output=True, check=True, env=bubblewrap.ENVIRONMENT)
        assert done.stdout.decode().strip().startswith(f"{nonce} ")
        _reap()

    return run, lambda: _own() + _seconds(resource.getrusage(resource.RUSAGE_CHILDREN))


def warm(sandbox: Sandbox) -> Way:
    """The sandbox, its interpreters started."""

    def run() -> None:
        assert sandbox.run(PROGRAM, "", TESTS).passed

    run()
    tree = [p for pid in sandbox.processes for p in (psutil.Process(pid), *psutil.Process(pid).children())]
    return run, lambda: _own() + sum(sum(process.cpu_times()[:4]) for process in tree)


def _own() -> float:
    return _seconds(resource.getrusage(resource.RUSAGE_SELF))


def _seconds(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def _reap() -> None:
    """Bubblewrap leaves its inner process to whoever reaps it; reaped here, it counts."""
    while True:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return


def _round(way: Way, seconds: float) -> tuple[float, float]:
    """Programs per second of the clock and per second of CPU."""
    run, used = way
    count, begun, cpu = 0, time.monotonic(), used()
    while (wall := time.monotonic() - begun) < seconds:
        run()
        count += 1
    return count / wall, count / (used() - cpu)


def measure(rounds: int = ROUNDS, seconds: float = ROUND_S) -> dict[str, float]:
    """Medians over the rounds: of each way programs per second, by the clock and of CPU, and the ratios to bwrap."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with ExitStack() as stack:
        ways = {
            "bwrap": one_bwrap(),
            "apart": one_bwrap_apart(),
            "fresh": warm(stack.enter_context(Sandbox(settings(fresh=True)))),
            "shared": warm(stack.enter_context(Sandbox(settings(fresh=False)))),
        }
        for number in range(rounds + 1):
            for name, way in ways.items():
                rates = _round(way, seconds)
                if number:  # the first round only warms
                    found[name].append(rates)
    figures: dict[str, float] = {}
    for clock, unit in enumerate(("s", "cpu_s")):
        for name, rates_of in found.items():
            figures[f"{name}_per_{unit}"] = round(statistics.median(rates[clock] for rates in rates_of), 1)
        for name in ("fresh", "shared"):
            for base in ("bwrap", "apart"):
                ratios = [ours[clock] / theirs[clock] for ours, theirs in zip(found[name], found[base], strict=True)]
                figures[f"{name}_over_{base}_{unit}"] = round(statistics.median(ratios), 2)
    return figures


def main() -> None:
    """Prints a table and, as its last line, one JSON object."""
    figures = measure()
    for unit, what in (("s", "per second"), ("cpu_s", "per CPU second")):
        print(f"{what:16}{'programs':>10}{'over bwrap':>12}{'over apart':>12}")
        for name in WAYS:
            ratios = (figures.get(f"{name}_over_{base}_{unit}", "") for base in ("bwrap", "apart"))
            print(f"{name:16}{figures[f'{name}_per_{unit}']:>10}" + "".join(f"{ratio:>12}" for ratio in ratios))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
