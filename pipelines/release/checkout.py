"""The code of another commit, in a folder of its own that is gone afterwards."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.config.paths import PROJECT
from pipelines.errors import UserError


def knows(commit: str | None) -> bool:
    """Whether this project's repository holds the commit."""
    return commit is not None and _git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A working tree of the commit for the block; the project's own is left as it is."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as temporary:
        folder = Path(temporary) / "code"
        done = _git("worktree", "add", "--detach", str(folder), commit)
        if done.returncode:
            raise UserError(f"reproduce: git can't check out {commit}: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    # Hooks of this repository are for people who change branches.
    command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]
    try:
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", "git isn't installed")
