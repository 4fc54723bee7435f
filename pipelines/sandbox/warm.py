"""A process that stays warm between requests: one message to it, one back."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pipelines.sandbox import bubblewrap, frames
from pipelines.tasks.verdict import VerifierFailed

START_S = 30.0  # on a busy machine; an interpreter takes a tenth of a second
_SOURCE = Path(__file__).resolve().parent.parent.parent


class Warm:
    """`module` (its `main` serves) in an interpreter of its own, inside bubblewrap where `limits` say `isolated`.

    It starts with the first request, and anew with the one after a failure.
    """

    def __init__(self, module: str, limits: Mapping[str, Any]) -> None:
        self.module, self.limits = module, dict(limits)
        self.process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def ask(self, message: bytes, seconds: float) -> bytes:
        """The reply. Raises frames.Late where none comes within `seconds`, VerifierFailed where none will come."""
        process = self.process or self._start()
        try:
            return self._exchange(process, message, seconds)
        except frames.Late:
            self.close()
            raise
        except (frames.Ended, OSError) as error:
            told = self._ended()
            raise VerifierFailed(f"the sandbox's process {self.module} failed: {error}{told}") from error

    def _exchange(self, process: subprocess.Popen[bytes], message: bytes, seconds: float) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        frames.send(process.stdin.fileno(), message)
        return frames.receive(process.stdout.fileno(), seconds)

    def _start(self) -> subprocess.Popen[bytes]:
        source = str(_SOURCE)
        if self.limits["isolated"]:
            within = bubblewrap.within(_SOURCE)
            command, readable, source = within.command, within.readable, within.source
        else:
            command, readable = [], []
        boot = (
            f"import sys; sys.path.insert(0, {source!r}); from pipelines.sandbox import {self.module} as it; it.main()"
        )
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the process
        try:
            self.process = subprocess.Popen(
                [*command, bubblewrap.interpreter(), "-P", "-s", "-S", "-c", boot],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**bubblewrap.ENVIRONMENT, "LD_BIND_NOW": "1"},  # or each fork would look its symbols up again
                cwd="/",
                bufsize=0,
            )
            settings = {**self.limits, "readable": readable, "source": source}
            self._exchange(self.process, json.dumps(settings).encode(), START_S)
        except (frames.Ended, OSError) as error:
            raise VerifierFailed(f"the sandbox can't start: {error}{self._ended()}") from error
        return self.process

    def _ended(self) -> str:
        """Ends what is left of the process; the last line that it wrote to standard error."""
        process, errors = self.process, self._errors
        self.close()
        if errors is None:
            return ""
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        errors.close()
        code = "" if process is None or process.returncode is None else f" (exit code {process.returncode})"
        return f": {lines[-1]}{code}" if lines else code

    def close(self) -> None:
        """Ends the process, and waits until everything within is gone."""
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGKILL)  # bubblewrap's death ends its namespace
        process.wait()
        process.stdin.close()
        try:
            while True:
                frames.receive(process.stdout.fileno(), START_S)
        except (frames.Ended, OSError):
            process.stdout.close()
