"""The engine's process: started in a session of its own, waited for, and ended with all that it started."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

from pipelines.errors import Unreachable, UserError

LOOK_S = 0.2
PR_SET_PDEATHSIG = 1  # linux/prctl.h
SHOWN_LINES = 15  # of the log, where the engine dies

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_us() -> None:
    """In the child, before its program: SIGKILL leaves nobody to end it, so the kernel does."""
    if _LIBC:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Engine:
    """A program that serves HTTP; what it prints goes into `log`."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as stream:
            # A terminal's Ctrl-C is for us: we end the engine, with its children, when it is time.
            self._process = subprocess.Popen(
                list(command),
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                preexec_fn=_end_with_us if _LIBC else None,
            )

    @property
    def pid(self) -> int:
        """Of the program, and of its group."""
        return self._process.pid

    def check(self) -> None:
        """Raises Unreachable with the end of its log where it has died."""
        if (code := self._process.poll()) is not None:
            raise Unreachable(f"serve.engine: the engine has ended with code {code}:\n{self._tail()}")

    def wait_for(self, url: str, limit_s: float) -> None:
        """Until it answers at `url`. Raises Unreachable where it dies, or takes longer than `limit_s`."""
        deadline = time.monotonic() + limit_s
        while not _answers(url):
            self.check()
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"serve.start_s: the engine doesn't answer at {url} after {limit_s:g} s:\n{self._tail()}"
                )
            time.sleep(LOOK_S)

    def stop(self, patience_s: float) -> None:
        """Ends it and its children: asked first, killed after `patience_s`."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            self._signal(signum)
            try:
                self._process.wait(timeout=patience_s)
            except subprocess.TimeoutExpired:
                continue
        # Children that have outlived it.
        self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            return

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2.0).is_success
    except httpx2.HTTPError:
        return False


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def check_free(host: str, port: int) -> None:
    """Raises UserError where the address can't be listened on."""
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        raise UserError(f"serve.port: can't listen on {host}:{port}: {error.strerror or error}") from None
