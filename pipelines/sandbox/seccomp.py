"""The system calls that a program may make, as a filter that the kernel runs (seccomp BPF, seccomp(2)).

The list allows; what it lacks is refused with EPERM, so a call that a later kernel brings is refused too. It holds what
an interpreter needs to compute, to import and to read files. Missing on purpose are all calls that change files, talk
to a network, touch another process (kill, ptrace, process_vm_*, pidfd_*, fcntl's signals), start a program, make
memory that no limit counts (memfd_create, shmget), or reach seldom-used parts of the kernel (bpf, keyctl, io_uring,
perf_event_open, userfaultfd, mount, unshare, setns, kexec). Only the machine's own numbers count: calls of another
word size end the program. A shell (`commands.py`) may also start programs and change files, where mounts and limits say
which and how much.
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple

# name: the numbers on x86_64 and aarch64, None where the call doesn't exist.
_CALLS: dict[str, tuple[int | None, int]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "wait4": (61, 260),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_ctl": (233, 21),
    "waitid": (247, 95),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "rseq": (334, 293),
    "close_range": (436, 436),
    "faccessat2": (439, 439),
}
_X86_64_ONLY = {  # older forms of calls above
    "open": 2,
    "stat": 4,
    "lstat": 6,
    "poll": 7,
    "access": 21,
    "pipe": 22,
    "select": 23,
    "dup2": 33,
    "alarm": 37,
    "readlink": 89,
    "getpgrp": 111,
    "arch_prctl": 158,
    "time": 201,
    "epoll_wait": 232,
}
# What a shell and its programs need besides: to start others, wait for them, end them, and change files.
_SHELL_CALLS: dict[str, tuple[int | None, int]] = {
    "rt_sigsuspend": (130, 133),
    "execve": (59, 221),
    "kill": (62, 129),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "fchmod": (91, 52),
    "fchown": (93, 55),
    "umask": (95, 166),
    "ftruncate": (77, 46),
    "truncate": (76, 45),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "pwrite64": (18, 68),
    "sendfile": (40, 71),
    "setpgid": (109, 154),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "fadvise64": (221, 223),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "linkat": (265, 37),
    "symlinkat": (266, 36),
    "fchmodat": (268, 53),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "fallocate": (285, 47),
    "renameat2": (316, 276),
    "copy_file_range": (326, 285),
    "getxattr": (191, 8),
    "lgetxattr": (192, 9),
    "fgetxattr": (193, 10),
    "listxattr": (194, 11),
    "llistxattr": (195, 12),
    "flistxattr": (196, 13),
}
_SHELL_X86_64_ONLY = {"rename": 82, "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87, "symlink": 88, "chmod": 90}
_SET_ATTRIBUTES = {"x86_64": (188, 189, 190), "aarch64": (5, 6, 7)}  # refused as file systems without them do
_FORKS = {"fork": 57, "vfork": 58}  # x86_64; elsewhere they are clone
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # no F_SETOWN, F_SETSIG, F_NOTIFY: they send signals
_NEW_NAMESPACES = 0x7E020000
_AF_UNIX = 1

_LOAD, _EQUALS, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of linux/bpf_common.h, K forms
_NR, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2

Code = list[tuple[int, int, int, int]]  # struct sock_filter: operation, jump if true, jump if false, operand


class Machine(NamedTuple):
    """`audit` is AUDIT_ARCH_* of linux/audit.h; the other fields are numbers of calls."""

    audit: int
    clone: int
    clone3: int
    ioctl: int
    fcntl: int
    prlimit64: int
    socketpair: int
    capset: int
    kill: int
    pidfd_open: int
    prctl: int


MACHINES = {
    "x86_64": Machine(0xC000003E, 56, 435, 16, 72, 302, 53, 126, 62, 434, 157),
    "aarch64": Machine(0xC00000B7, 220, 435, 29, 25, 261, 199, 91, 129, 434, 167),
}


def architecture() -> str:
    """This machine's name. Raises OSError for any other than x86_64 and aarch64."""
    name = os.uname().machine
    if name not in MACHINES:
        raise OSError(f"the filter of system calls knows {' and '.join(MACHINES)}, not {name}")
    return name


def machine() -> Machine:
    """This machine's numbers. Raises OSError as `architecture`."""
    return MACHINES[architecture()]


def program(name: str, forks: bool, files: bool = False) -> bytes:
    """The filter for the machine of this name, as an array of struct sock_filter.

    `forks` allows new processes, `files` what a shell needs besides: to start programs, and to change files.
    """
    leaves = _leaves(name, forks)
    if files:
        leaves |= dict.fromkeys(_shell_numbers(name), _ALLOWED)
        leaves |= dict.fromkeys(_SET_ATTRIBUTES[name], _answer(0x00050000 | errno.EOPNOTSUPP))
    return _packed([*_native(name), *_search(_ranges(leaves, _REFUSE))])


def _shell_numbers(name: str) -> set[int]:
    own = set(_SHELL_X86_64_ONLY.values()) | {264} if name == "x86_64" else {38}  # and renameat
    column = 0 if name == "x86_64" else 1
    return own | {number for numbers in _SHELL_CALLS.values() if (number := numbers[column]) is not None}


def in_two(name: str, forks: bool) -> tuple[bytes, bytes]:
    """The same filter in two parts: a process with the first may make others and confine these with the second.

    The second is small, because the kernel compiles it anew for each process; it refuses what the first allows beyond
    the whole: any clone, kill, pidfd_open, capset, other processes' limits, more filters.
    """
    here = MACHINES[name]
    whole = _leaves(name, forks)
    own = dict.fromkeys((here.clone, here.kill, here.pidfd_open, here.capset, here.prlimit64), _ALLOWED)
    own[here.prctl] = _one_of(0, (_PR_SET_SECCOMP,))
    first = _packed([*_native(name), *_search(_ranges({**whole, **own}, _REFUSE))])
    rest = {number: whole.get(number, _REFUSE) for number in own}
    return first, _packed([(_LOAD, 0, 0, _NR), *_search(_ranges(rest, _ALLOWED))])


def _leaves(name: str, forks: bool) -> dict[int, Code]:
    here = MACHINES[name]
    column = 0 if name == "x86_64" else 1
    numbers = {numbers[column] for numbers in _CALLS.values()}
    if name == "x86_64":
        numbers |= set(_X86_64_ONLY.values()) | (set(_FORKS.values()) if forks else set())
    leaves: dict[int, Code] = {number: _ALLOWED for number in numbers if number is not None}
    leaves[here.clone3] = _answer(0x00050000 | errno.ENOSYS)  # its flags are in memory; the C library then uses clone
    leaves[here.ioctl] = _one_of(1, _IOCTLS)
    leaves[here.fcntl] = _one_of(1, _FCNTLS)
    leaves[here.prlimit64] = _one_of(0, (0,))  # its own limits, no other process's
    leaves[here.socketpair] = _one_of(0, (_AF_UNIX,))
    if forks:
        leaves[here.clone] = [(_LOAD, 0, 0, _ARGUMENTS), (_ANY_OF, 0, 1, _NEW_NAMESPACES), *_REFUSE, *_ALLOWED]
    return leaves


def _native(name: str) -> Code:
    """Ends the process for a call of another word size, else loads the call's number."""
    return [(_LOAD, 0, 0, _ARCH), (_EQUALS, 1, 0, MACHINES[name].audit), *_answer(_KILL), (_LOAD, 0, 0, _NR)]


def _ranges(leaves: dict[int, Code], otherwise: Code) -> list[tuple[int, Code]]:
    """Where each range of numbers begins, and what holds for it."""
    starts: list[tuple[int, Code]] = [(0, otherwise)]
    for number in sorted(leaves):
        for start, leaf in ((number, leaves[number]), (number + 1, otherwise)):
            if starts[-1][0] == start:
                starts.pop()
            if not starts or starts[-1][1] != leaf:
                starts.append((start, leaf))
    return starts


def _packed(code: Code) -> bytes:
    return b"".join(struct.pack("<HBBI", *step) for step in code)


def _answer(value: int) -> Code:
    return [(_RETURN, 0, 0, value)]


_ALLOWED, _REFUSE = _answer(_ALLOW), _answer(0x00050000 | errno.EPERM)


def _one_of(argument: int, values: tuple[int, ...]) -> Code:
    """Allows the call where the low half of an argument is one of the values (the kernel reads no more of these)."""
    tests = [(_EQUALS, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *tests, *_REFUSE, *_ALLOWED]


def _search(starts: list[tuple[int, Code]]) -> Code:
    """A binary search of the ranges that begin at these numbers."""
    if len(starts) == 1:
        return starts[0][1]
    middle = len(starts) // 2
    lower, upper = _search(starts[:middle]), _search(starts[middle:])
    assert len(lower) < 256, "a jump is one byte"
    return [(_AT_LEAST, len(lower), 0, starts[middle][0]), *lower, *upper]


class Filter:
    """A filter (an array of struct sock_filter), made ready so that `install` is one system call."""

    def __init__(self, code: bytes) -> None:
        self._prctl = ctypes.PyDLL(None, use_errno=True).prctl
        self._code = ctypes.create_string_buffer(code, len(code))
        head = struct.pack("@HP", len(code) // 8, ctypes.addressof(self._code))
        self._head = ctypes.create_string_buffer(head, len(head))
        self._head_at = ctypes.byref(self._head)

    def promise(self) -> None:
        """No new privileges for this process and its children, for good: needed before `install`."""
        if self._prctl(_PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(number) for number in (1, 0, 0, 0))):
            raise OSError(ctypes.get_errno(), "prctl: no new privileges")

    def install(self) -> None:
        """For this process and its children, for good. Raises OSError where the kernel refuses."""
        if self._prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._head_at):
            raise OSError(ctypes.get_errno(), "prctl: seccomp")
