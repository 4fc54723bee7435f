"""Who is at work on a product: a lock that the kernel takes back when its holder dies, whatever killed it."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.progress import say

LOCK = "lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_open: set[int] = set()  # descriptors of the locks that this process holds


def _forked() -> None:
    # A worker forked from a holder would go on holding after the holder's death.
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_forked)


def beside(folder: Path) -> Path:
    """Where lock, run and unsent metrics of the product in `folder` are kept while it is made; no part of it."""
    return folder.with_name(folder.name + ".run")


@dataclass(frozen=True)
class Hold:
    """The lock of one product, held."""

    descriptor: int

    def names(self, run_id: str) -> None:
        """What another start is told of the holder, with the run that it works in."""
        content = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now(), "run": run_id}
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(content).encode(), 0)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Hold]:
    """Holds the product in `folder` for the block.

    Raises UserError naming the holder where another process, or this one, is at work on it already, and where the
    folder can't be written.
    """
    place = beside(folder)
    descriptor = _locked(folder, place)
    _open.add(descriptor)
    hold = Hold(descriptor)
    hold.names("none yet")
    try:
        yield hold
    finally:
        # While it is held; whoever has opened the same file finds it gone and takes the next.
        with contextlib.suppress(FileNotFoundError):
            (place / LOCK).unlink()
        remove_empty(place)
        _open.discard(descriptor)
        os.close(descriptor)


def remove_empty(folder: Path) -> None:
    """Removes a folder that holds nothing; another start may have put something there, or removed it."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _locked(folder: Path, place: Path) -> int:
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # its last holder has just removed it
        except OSError as error:
            raise UserError(f"{folder.parent}: can't write the output folder: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = _holder(descriptor)
            os.close(descriptor)
            raise UserError(f"{folder}: another start is at work on it: {told}; wait for it or stop it") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(f"  {folder.parent}: this file system has no locks; two starts at once won't be told apart")
            return descriptor
        if _is_at(descriptor, place / LOCK):
            return descriptor
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        known: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return "its name isn't written yet"
    return f"process {known['pid']} on {known['host']}, since {known['since']}, run {known['run']}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
