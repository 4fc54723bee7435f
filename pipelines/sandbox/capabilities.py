"""Giving up capabilities (capabilities(7)): a new user namespace hands its first process all of them."""

import ctypes
import struct

from pipelines.sandbox.seccomp import machine

_VERSION_3 = 0x20080522


class Capabilities:
    """Made ready so that `drop` is one system call."""

    def __init__(self) -> None:
        self._syscall = ctypes.PyDLL(None, use_errno=True).syscall
        self._number = ctypes.c_long(machine().capset)
        self._head = ctypes.create_string_buffer(struct.pack("<II", _VERSION_3, 0), 8)
        self._none = ctypes.create_string_buffer(24)

    def drop(self) -> None:
        """All, for good. Raises OSError where the kernel refuses."""
        if self._syscall(self._number, self._head, self._none):
            raise OSError(ctypes.get_errno(), "capset")
