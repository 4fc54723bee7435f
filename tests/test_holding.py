"""The lock of a product: who holds it is named, and the kernel takes it back from the dead."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.holding import beside, held

HOLDER = """
import sys, time, os
from pathlib import Path
from pipelines.holding import held
with held(Path(sys.argv[1])) as hold:
    hold.names("r1")
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(600)
"""


def holder(folder: Path) -> tuple["subprocess.Popen[str]", int]:
    """A process that holds `folder`, and a worker forked from it."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=PROJECT, text=True, stdout=-1)
    assert process.stdout
    return process, int(process.stdout.readline())


def test_a_second_start_is_told_of_the_first_until_that_dies(tmp_path: Path) -> None:
    """Also when the first is killed and a worker that was forked from it lives on."""
    folder = tmp_path / "adapter"
    process, worker = holder(folder)
    try:
        message = rf"{folder}: another start is at work on it: process {process.pid} on \S+, since 20\S+, run r1;"
        with pytest.raises(UserError, match=message), held(folder):
            pass
        process.kill()
        process.wait()
        with held(folder):
            pass
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
    assert not beside(folder).exists()


def test_one_process_holds_a_folder_once(tmp_path: Path) -> None:
    with held(tmp_path / "a"), held(tmp_path / "b"):
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), held(tmp_path / "a"):
            pass
        (beside(tmp_path / "a") / "run.json").write_text("{}")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.run", "run.json"]


def test_of_many_starts_one_at_a_time_gets_it(tmp_path: Path) -> None:
    """They open and remove the same file again and again; no two are ever inside at once."""
    script = f"""
import os
import time
from pathlib import Path
from pipelines.errors import UserError
from pipelines.holding import held
got = 0
while got < 60:
    try:
        with held(Path({str(tmp_path / "a")!r})):
            os.close(os.open({str(tmp_path / "inside")!r}, os.O_CREAT | os.O_EXCL))
            time.sleep(0.001)
            os.unlink({str(tmp_path / "inside")!r})
            got += 1
    except UserError:
        pass
"""
    processes = [subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT) for _ in range(3)]
    deadline = time.monotonic() + 60
    assert [process.wait(timeout=deadline - time.monotonic()) for process in processes] == [0, 0, 0]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: can't write the output folder"), held(tmp_path / "file" / "adapter"):
        pass
