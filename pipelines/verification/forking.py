"""The template's side that asks: starting it, having workers forked, taking dead ones off the process table."""

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from pipelines.config.paths import PROJECT
from pipelines.config.schema import Task
from pipelines.config.schema import Verifier as Settings
from pipelines.errors import UserError
from pipelines.tasks import field_of
from pipelines.verification.frames import receive, send

START_S = 120.0  # to import what a verifier needs
ANSWER_S = 30.0  # to fork, which takes milliseconds
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from pipelines.verification.template import main; main(int(sys.argv[2]))"
)


class Template:
    """A process that workers are forked from, see `template`.

    Raises UserError where it can't make the verify, ConnectionError or TimeoutError where it is gone.
    """

    def __init__(self, task: Task, settings: Settings, name: str | None) -> None:
        self.field = field_of(name)
        self._control, theirs = socket.socketpair()
        # What this process loaded may stand before us in its path, such as the code that a registered version carries.
        own = str(PROJECT)
        path = json.dumps([own, *(entry or os.getcwd() for entry in sys.path)])  # noqa: PTH109  # an import path is text
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, path, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a verifier prints is for people
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the process that asks, which ends this one
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            )
        finally:
            theirs.close()
        about = {"task": task.model_dump_json(), "sandbox": settings.sandbox.model_dump_json(), "name": name}
        try:
            send(self._control, about | {"memory_mb": settings.memory_mb})
            self.check(self._answer(START_S))
        except BaseException:
            self.close()
            raise

    def fork(self) -> tuple[int, socket.socket]:
        """A new worker's process id, and the connection to it."""
        mine, theirs = socket.socketpair()
        try:
            send(self._control, {"fork": True})
            socket.send_fds(self._control, [b"."], [theirs.fileno()])
            pid = int(self._answer(ANSWER_S)["pid"])
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()
        mine.setblocking(False)
        return pid, mine

    def reap(self, pid: int) -> str:
        """How a killed or dead worker ended; its number is free from now on."""
        send(self._control, {"reap": pid})
        code = os.waitstatus_to_exitcode(int(self._answer(ANSWER_S)["status"]))
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def check(self, told: dict[str, Any]) -> None:
        """Raises UserError where the verify can't be made."""
        if "mistake" in told:
            raise UserError(told["mistake"])
        if "broken" in told:
            raise UserError(f"{self.field}: the verifier can't be made:\n{told['broken']}")

    def close(self) -> None:
        """Closing the connection ends the template, which ends all that it ever forked."""
        self._control.close()
        try:
            self._process.wait(ANSWER_S)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _answer(self, seconds: float) -> dict[str, Any]:
        self._control.settimeout(seconds)
        found = receive(self._control)
        self._control.settimeout(None)
        if found is None:
            raise ConnectionError("the template is gone")
        return found
