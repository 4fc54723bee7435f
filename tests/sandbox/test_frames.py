"""Messages on real pipes: whole, in pieces, and what is no message."""

import os
import threading
from collections.abc import Iterator

import pytest

from pipelines.sandbox import frames


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    try:
        os.close(write)
    except OSError:
        return


@pytest.mark.parametrize("size", [0, 1, 1 << 14, (1 << 20) + 3])
def test_a_message_arrives_whole(pipe: tuple[int, int], size: int) -> None:
    message = os.urandom(size)
    sender = threading.Thread(target=frames.send, args=(pipe[1], message))
    sender.start()
    assert frames.receive(pipe[0], 5.0) == message
    sender.join()


def test_pieces_are_put_together(pipe: tuple[int, int]) -> None:
    for piece in (b"\0\0", b"\0\3a", b"bc"):
        os.write(pipe[1], piece)
    assert frames.receive(pipe[0]) == b"abc"


def test_a_late_message(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"\0\0\0\3ab")
    with pytest.raises(frames.Late):
        frames.receive(pipe[0], 0.01)


@pytest.mark.parametrize("told", [b"", b"\0\0", b"\0\0\0\3ab", b"\0\0\0\1ab", b"\xff\xff\xff\xffabc"])
def test_what_is_no_message(pipe: tuple[int, int], told: bytes) -> None:
    os.write(pipe[1], told)
    os.close(pipe[1])
    with pytest.raises(frames.Ended):
        frames.receive(pipe[0], 5.0)
