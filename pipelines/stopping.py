"""SIGTERM and Ctrl-C: at once where nothing is lost, after a checkpoint where training runs."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from pipelines.errors import Stopped


class Deferral:
    """While open, a signal is noted instead of raised; Ctrl-C pressed twice is raised."""

    def __init__(self) -> None:
        self.signum: int | None = None


class _State:
    """What the handler knows: who holds signals back, and whether the process is stopping already."""

    def __init__(self) -> None:
        self.open: list[Deferral] = []
        self.stopping = False


_state = _State()


def install() -> None:
    """Turns SIGTERM and SIGINT into `Stopped` in the main thread."""
    _state.stopping = False
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _handle)


@contextlib.contextmanager
def deferred() -> Iterator[Deferral]:
    """Holds a signal back until the block ends; the block looks at `signum` where it can stop."""
    deferral = Deferral()
    _state.open.append(deferral)
    try:
        yield deferral
    finally:
        _state.open.remove(deferral)
    if deferral.signum is not None:
        _stop(deferral.signum)


def _handle(signum: int, frame: FrameType | None) -> None:
    # `mlflow run` answers Ctrl-C with a SIGTERM of its own right after; only the same signal twice is impatience.
    if _state.stopping:
        return
    pending = _state.open[-1] if _state.open else None
    if pending is None or pending.signum == signum:
        _stop(signum)
    elif pending.signum is None:
        pending.signum = signum


def _stop(signum: int) -> None:
    _state.stopping = True
    raise Stopped(signum)
