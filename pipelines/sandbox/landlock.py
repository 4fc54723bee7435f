"""Landlock (landlock(7)): which files a process may read at all; it may change none, nor reach beyond its own.

It stands behind the read-only mounts. A kernel without it (before 5.13, or where it isn't among the enabled modules)
has the mounts, the namespaces and the filter of system calls only.
"""

import ctypes
import os
import struct
from collections.abc import Sequence

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every machine
_VERSION = 1
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP = 0b11  # bind and connect, from version 4
_SCOPES = 0b11  # abstract UNIX sockets and signals stay within, from version 6


class Ruleset:
    """Reading below `readable`, reading and writing the devices in `devices`, nothing else.

    `version` is the kernel's (0: it has no Landlock, and `restrict` does nothing).
    """

    def __init__(self, readable: Sequence[str], devices: Sequence[str]) -> None:
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        none, size = ctypes.c_void_p(None), ctypes.c_size_t(0)
        self.version = max(0, self._syscall(_CREATE_RULESET, none, size, ctypes.c_uint(_VERSION)))
        if not self.version:
            return
        files = _FILE_RIGHTS[min(self.version, 5)]
        wanted = struct.pack("<Q", files)
        wanted += struct.pack("<Q", _TCP) if self.version >= 4 else b""
        wanted += struct.pack("<Q", _SCOPES) if self.version >= 6 else b""
        self._fd = self._syscall(_CREATE_RULESET, wanted, ctypes.c_size_t(len(wanted)), ctypes.c_uint(0))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
        for path in readable:
            self._allow(path, _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE)  # noqa: PTH112 pathlib costs a warm interpreter megabytes
        for path in devices:
            self._allow(path, _READ_FILE | _WRITE_FILE)

    def _allow(self, path: str, rights: int) -> None:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("<Qi", rights, fd)
        failed = self._syscall(_ADD_RULE, self._fd, _PATH_BENEATH, rule, ctypes.c_uint(0))
        os.close(fd)
        if failed:
            raise OSError(ctypes.get_errno(), f"landlock_add_rule for {path}")

    def restrict(self) -> None:
        """This process and its children, for good; no_new_privs must be set. Raises OSError where it is refused."""
        if self.version and self._syscall(_RESTRICT_SELF, self._fd, ctypes.c_uint(0)):
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
