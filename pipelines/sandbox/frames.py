"""Messages on a pipe: four bytes of length, then so many bytes."""

import os
import select
import time
from collections.abc import Callable

LARGEST = 1 << 26


class Ended(EOFError):
    """The other side is gone, or says what isn't a message."""


class Late(Ended):
    """The other side doesn't answer in time."""


def write(fd: int, message: bytes) -> None:
    """All of it. Raises OSError where the other side is gone."""
    done = os.write(fd, message)
    while done < len(message):
        done += os.write(fd, memoryview(message)[done:])


def send(fd: int, message: bytes) -> None:
    """Raises OSError where the other side is gone."""
    write(fd, len(message).to_bytes(4, "big") + message)


def receive(fd: int, seconds: float | None = None) -> bytes:
    """The next message, where the other side sends another only after an answer.

    Raises Ended at the pipe's end and for what is no message, Late after so many seconds.
    """
    late = None if seconds is None else _deadline(fd, seconds)
    told = b""
    size = 4
    while len(told) < size:
        if late is not None and late():
            raise Late("it doesn't answer in time")
        part = os.read(fd, 1 << 14)
        if not part:
            raise Ended("it ended")
        told += part
        if size == 4 <= len(told):
            size += int.from_bytes(told[:4], "big")
        if len(told) > size > 4 or size > LARGEST:
            raise Ended("what it sent is no message")
    return told[4:]


def _deadline(fd: int, seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    waiter = select.poll()
    waiter.register(fd, select.POLLIN)
    return lambda: not waiter.poll(max(0.0, until - time.monotonic()) * 1000)
