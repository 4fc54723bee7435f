"""Attacking programs against real sandboxes: none is rewarded, nothing on the host changes, nothing is left."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.config import schema
from pipelines.sandbox.sandbox import Ran, Sandbox
from tests.sandbox.attacks import ATTACKS, FIRST, RIGHT, SECOND, TESTS, WIN
from tests.sandbox.settings import sandbox_settings

QUICK = {"cpu_s": 0.3, "wall_s": 1.0, "memory_mb": 128}


@pytest.fixture(scope="module")
def earlier() -> set[int]:
    """Processes that other tests left running, such as a tracker of multiprocessing's."""
    return descendants()


@pytest.fixture(scope="module", params=[True, False], ids=["fresh", "shared"])
def sandbox(request: pytest.FixtureRequest, earlier: set[int]) -> Iterator[Sandbox]:
    with Sandbox(sandbox_settings(fresh_namespaces=request.param, **QUICK)) as made:
        yield made


@pytest.fixture
def host(tmp_path: Path) -> Iterator["Host"]:
    with Host(tmp_path) as made:
        yield made


class Host:
    """What an attack could harm: a file and its folder, a port, a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.canary = folder / "canary"

    def __enter__(self) -> "Host":
        self.canary.write_text(f"{FIRST} {SECOND}")
        self.before = self.canary.stat()
        self.port = socket.create_server(("127.0.0.1", 0))
        self.port.settimeout(0)
        self.process = subprocess.Popen(["sleep", "1000"])
        return self

    def __exit__(self, *args: object) -> None:
        self.port.close()
        self.process.kill()
        self.process.wait()

    def code(self, attack: str) -> str:
        names = {"CANARY": str(self.canary), "PORT": self.port.getsockname()[1], "PID": self.process.pid}
        told = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        return told + (WIN if "WIN" in attack else "") + attack

    def check(self) -> None:
        assert [path.name for path in self.folder.iterdir()] == ["canary"]
        after = self.canary.stat()
        assert self.canary.read_text() == f"{FIRST} {SECOND}"
        assert (after.st_mtime_ns, after.st_mode, after.st_ino) == (
            self.before.st_mtime_ns,
            self.before.st_mode,
            self.before.st_ino,
        )
        with pytest.raises(BlockingIOError):
            self.port.accept()
        assert self.process.poll() is None
        until = time.monotonic() + 3  # it may not have been started yet
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < until, "it doesn't sleep any more"
            time.sleep(0.001)


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def left(sandbox: Sandbox, others: set[int]) -> set[int]:
    """Descendants that stay, beside others and the sandbox: its two interpreters and one fork that waits."""
    until = time.monotonic() + 3
    while True:
        kept = {process.pid for pid in sandbox.processes for process in psutil.Process(pid).children()}
        found = descendants() - others - kept - set(sandbox.processes)
        waiting = {child.pid for pid in kept for child in psutil.Process(pid).children()}
        if (len(waiting) <= 1 and not found - waiting) or time.monotonic() > until:
            return found - waiting if len(waiting) <= 1 else waiting
        time.sleep(0.01)


def test_an_attack_that_goes_well_would_be_rewarded(sandbox: Sandbox) -> None:
    assert sandbox.run(f"{WIN}def answer(x):\n    return WIN[x]", "", TESTS).passed


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_neither_rewarded_nor_felt(sandbox: Sandbox, earlier: set[int], host: Host, name: str) -> None:
    processes = sandbox.processes
    ran = sandbox.run(host.code(ATTACKS[name]), "", TESTS)
    assert not ran.passed
    assert ran.failure
    assert "\n" not in ran.failure
    host.check()
    assert not left(sandbox, earlier | {host.process.pid})
    assert sandbox.run(RIGHT, "", TESTS) == Ran(True, None)
    if processes:
        assert sandbox.processes == processes, "an attack ended the sandbox"


def test_no_process_of_many_is_left(host: Host) -> None:
    """With forks allowed, daemons are made, and end with their program. Root's processes aren't counted: no bomb."""
    others = descendants()
    for fresh in (True, False):
        with Sandbox(sandbox_settings(fresh_namespaces=fresh, processes=4, **QUICK)) as sandbox:
            for name in ("setsid daemon", *(["fork bomb", "thread bomb"] if os.geteuid() else [])):
                assert not sandbox.run(host.code(ATTACKS[name]), "", TESTS).passed
                assert not left(sandbox, others)
            forked = "import os\npid = os.fork()\nif not pid:\n    os._exit(7)\nstatus = os.waitpid(pid, 0)[1]\n"
            assert sandbox.run(f"{forked}def code():\n    return status >> 8", "", ["assert code() == 7"]).passed


def test_closing_ends_everything() -> None:
    before = descendants()
    with Sandbox(sandbox_settings()) as sandbox:
        assert sandbox.run(RIGHT, "", TESTS).passed
    until = time.monotonic() + 5
    while (after := descendants() - before) and time.monotonic() < until:
        time.sleep(0.01)
    assert not after


def test_the_unprotected_backend_leaves_no_process_either(host: Host) -> None:
    settings: schema.Sandbox = sandbox_settings(backend="none", allow_unsandboxed=True, **QUICK)
    with Sandbox(settings) as sandbox:
        for name in (
            "setsid daemon",
            "os._exit(0)",
            "CPU bomb",
            "memory bomb",
            "output bomb",
            "an object equal to all",
        ):
            assert not sandbox.run(host.code(ATTACKS[name]), "", TESTS).passed
            assert sandbox.run(RIGHT, "", TESTS).passed
            kept = {process.pid for pid in sandbox.processes for process in psutil.Process(pid).children()}
            assert len(kept) <= 1, "only the fork that waits"
        host.check()
