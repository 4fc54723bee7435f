"""SIGTERM and Ctrl-C: at once where nothing is lost, after a checkpoint where training runs."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from pipelines.errors import Stopped


class Deferral:
    """While open, a signal is noted instead of raised; the second one is raised."""

    def __init__(self) -> None:
        self.signum: int | None = None


_open: list[Deferral] = []


def install() -> None:
    """Turns SIGTERM and SIGINT into `Stopped` in the main thread."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _handle)


@contextlib.contextmanager
def deferred() -> Iterator[Deferral]:
    """Holds a signal back until the block ends; the block looks at `signum` where it can stop."""
    deferral = Deferral()
    _open.append(deferral)
    try:
        yield deferral
    finally:
        _open.remove(deferral)
    if deferral.signum is not None:
        raise Stopped(deferral.signum)


def _handle(signum: int, frame: FrameType | None) -> None:
    if _open and _open[-1].signum is None:
        _open[-1].signum = signum
    else:
        raise Stopped(signum)
