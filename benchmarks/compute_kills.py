"""SIGKILL at random moments and inside saves: does the same command go on, and to the very same adapter?

usage: python -m benchmarks.compute_kills [KILLS OF EACH KIND]
"""

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.compute_trainings import STEPS, Training, draws, ended, fresh, outcome, prepared, signalled

SEED = 7
TRIES = 20  # at a moment inside a save that the training was past when the signal came
FILES = 12  # of a checkpoint of one process, some fewer than it has

Moment = Callable[[Path], Callable[[], bool]]


def measure(temporary: Path, kills: int) -> dict[str, int]:
    """`kills` processes killed at random moments and as many inside a save, each gone on with to the end.

    Killed inside a save means that its `.writing-N` is still there.
    """
    training, random = prepared(temporary), draws(SEED)
    begun = time.monotonic()
    expected = training.whole(fresh(temporary / "whole"), temporary / "log")
    took = time.monotonic() - begun
    identical = 0
    for number in range(kills):
        share = (number + random.random()) / kills
        work = fresh(temporary / "work")
        _killed(training, work, temporary, _after(share * took))
        identical += _goes_on(training, work, temporary, expected)
    for _ in range(kills):
        work = _killed_inside(training, temporary, random.randint(1, STEPS), random.randint(0, FILES))
        identical += _goes_on(training, work, temporary, expected)
    return {"kills_identical": identical, "kills_total": 2 * kills}


def _after(seconds: float) -> Moment:
    def moment(work: Path) -> Callable[[], bool]:
        until = time.monotonic() + seconds
        return lambda: time.monotonic() >= until

    return moment


def _killed(training: Training, work: Path, temporary: Path, moment: Moment) -> int:
    process = training.start(work, temporary / "log")
    return signalled(process, moment(work))


def _killed_inside(training: Training, temporary: Path, step: int, files: int) -> Path:
    """The work folder of a training that was killed when the save of `step` had begun `files` files."""

    def moment(work: Path) -> Callable[[], bool]:
        writing = work / "checkpoints" / f".writing-{step}"
        made = writing / f"checkpoint-{step}"
        return lambda: writing.exists() and (not files or (made.exists() and len(list(made.iterdir())) >= files))

    for _ in range(TRIES):
        work = fresh(temporary / "work")
        code = _killed(training, work, temporary, moment)
        if code == -signal.SIGKILL and (work / "checkpoints" / f".writing-{step}").exists():
            return work
    raise RuntimeError(f"no kill inside the save of step {step} with {files} files in {TRIES} tries")


def _goes_on(training: Training, work: Path, temporary: Path, expected: bytes) -> bool:
    """Whether a new process comes to the end by itself, and to what was expected, bit for bit."""
    code = ended(training.start(work, temporary / "log"))
    return code == 0 and outcome(work) == expected


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(measure(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 20))
