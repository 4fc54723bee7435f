"""JSON over sockets: each message behind its length."""

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")


def packed(message: dict[str, Any]) -> bytes:
    content = json.dumps(message).encode()
    return _LENGTH.pack(len(content)) + content


def taken(buffer: bytearray) -> dict[str, Any] | None:
    """The first whole message, removed from the buffer; None where it isn't whole yet."""
    if len(buffer) < _LENGTH.size:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    found: dict[str, Any] = json.loads(bytes(buffer[_LENGTH.size : end]))
    del buffer[:end]
    return found


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(packed(message))


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message, however long it takes; None where the other side has closed."""
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    content = _exactly(connection, _LENGTH.unpack(head)[0])
    return None if content is None else json.loads(content)


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        part = connection.recv(min(size - len(found), 1 << 20))
        if not part:
            return None
        found += part
    return bytes(found)
