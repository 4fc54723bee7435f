"""The warm interpreter: it forks once for each program, watches the fork, and leaves none of its processes behind.

It reads nothing that a program wrote but how many bytes there are, and knows no expected value. Started by `warm.py`;
its first message holds the limits.
"""

import ctypes
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from marshal import dumps, loads
from os import _exit, closerange, dup2, read, write
from typing import Any

from pipelines.sandbox import frames
from pipelines.sandbox.capabilities import Capabilities
from pipelines.sandbox.landlock import Ruleset
from pipelines.sandbox.program import evaluate
from pipelines.sandbox.seccomp import Filter, architecture, in_two, machine

# What programs import most: forked, an import costs nothing. `random` is seeded, so programs do the same in every run.
_PRELOADED = (
    "bisect",
    "copy",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "random",
    "re",
    "string",
    "typing",
)
_NAMESPACES = 0x7E020000  # CLONE_NEW: user, mount, pid, network, ipc, uts, cgroup
_INTERPRETER_MB = 32  # address space of the interpreter itself, beside what a program may use
_PR_SET_CHILD_SUBREAPER = 36
_SIGKILL = int(signal.SIGKILL)
_RESULTS = 3  # descriptor in the fork
_DESCRIPTORS = 64  # more than the zygote opens
_POOL, _POOL_HEAD = 1 << 14, 48  # bytes, of the interpreter's own allocator for up to 512 bytes
_WALL = 0x40000000  # of waitpid(2): children of any kind
_CONFINED = b"+"
BROKEN = "broken"


class Zygote:
    """`limits` are the sandbox's settings, `isolated` whether bubblewrap is around, `readable` what may be read."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.isolated = bool(limits["isolated"])
        cpu = int(limits["cpu_s"]) + 1  # only the last resort: `Fork` counts exactly
        self.own = [(resource.RLIMIT_CPU, (cpu, cpu + 1))]  # a fork's, as the zygote's own time and forks would count
        self.clone: Callable[..., int] = os.fork
        self.arguments: tuple[int, ...] = ()
        self.steps: list[Callable[[], None]] = [os.setsid, _seed]
        self.bury: Callable[[int], None] = _bury_group
        self.kept: list[object] = []
        if self.isolated:
            self._isolate(bool(limits["fresh_namespaces"]))
        else:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def _isolate(self, fresh: bool) -> None:
        most = self.limits["processes"]
        self.own_filter, rest = map(Filter, in_two(architecture(), forks=most > 1))
        self.clone = ctypes.PyDLL(None).syscall
        self.arguments = (machine().clone, int(signal.SIGCHLD) | (_NAMESPACES if fresh else 0), 0, 0, 0, 0)
        self.steps = [Capabilities().drop, rest.install] if fresh else [rest.install]
        if most > 1:  # without namespaces it would count all that the user runs
            most += 0 if fresh else 1
            self.own.append((resource.RLIMIT_NPROC, (most, most)))
        if os.getpid() != 1:
            raise OSError("only the first process of its namespace may end all others")
        self.bury = _bury_all

    def confine(self) -> None:
        """What zygote and programs share, set once: limits, files that may be read, system calls."""
        space = (self.limits["memory_mb"] + _INTERPRETER_MB) << 20
        limits = {
            resource.RLIMIT_AS: space,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_NOFILE: _DESCRIPTORS,
        }
        for what, most in limits.items():
            resource.setrlimit(what, (most, most))
        if self.isolated:
            devices = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
            Ruleset(self.limits["readable"], devices).restrict()
            self.own_filter.promise()
            self.own_filter.install()

    def serve(self, requests: int, replies: int) -> None:
        """Runs what is asked until nobody asks any more. The next fork is made ready while the last one is judged."""
        while True:
            fork, why = None, b""
            try:
                fork = self._fork()
            except OSError as error:
                why = str(error).encode()
            try:
                asked = frames.receive(requests)
            except frames.Ended:
                return
            end, results = self._run(fork, asked) if fork else (BROKEN, why)
            frames.send(replies, end.encode() + b"\n" + results)

    def _fork(self) -> "Fork":
        """clone(2) with new namespaces at once: one fork less than unshare(2) needs for a new pid namespace.

        Python's hooks after a fork aren't called: there is one thread, it holds the interpreter's lock in both
        processes, and the hooks would seed `random` anew and cost a tenth of the run.
        """
        request, request_in = os.pipe()
        output, output_in = os.pipe()
        results, results_in = os.pipe2(os.O_NONBLOCK)  # what a fork may write there at all fits in the pipe
        pid = self.clone(*self.arguments)
        if not pid:
            _child(request, output_in, results_in, self.steps)
        os.close(request)
        os.close(output_in)
        os.close(results_in)
        if pid < 0:
            for fd in (request_in, output, results):
                os.close(fd)
            raise OSError("new namespaces can't be made: user namespaces may be forbidden inside user namespaces")
        for what, most in self.own:
            resource.prlimit(pid, what, most)
        return Fork(pid, request_in, output, results)

    def _run(self, fork: "Fork", asked: bytes) -> tuple[str, bytes]:
        try:
            end = fork.run(asked, self.limits)
        finally:
            os.kill(fork.pid, _SIGKILL)
            _, status = os.waitpid(fork.pid, 0)
            self.bury(fork.pid)
            results = fork.close()
        if not results.startswith(_CONFINED):  # it came to its end before the program could do anything
            return BROKEN, results or b"a fork ended before it was confined"
        if end == "done" and os.WIFSIGNALED(status):
            end = "CPU time" if os.WTERMSIG(status) == signal.SIGXCPU else "died"
        return end, results[len(_CONFINED) :]


class Fork:
    """A fork that waits for its request: its id, and this side's ends of its pipes."""

    def __init__(self, pid: int, request: int, output: int, results: int) -> None:
        self.pid, self.request, self.output, self.results = pid, request, output, results

    def run(self, asked: bytes, limits: dict[str, Any]) -> str:
        """Sends the request; returns `done` once the fork has ended by itself, or the limit because of which it is to.

        The request ends where its pipe does.
        """
        try:
            frames.write(self.request, asked)
        except BrokenPipeError:
            return "died"
        finally:
            os.close(self.request)
        ended = os.pidfd_open(self.pid)
        try:
            return self._follow(ended, limits)
        finally:
            os.close(ended)

    def _follow(self, ended: int, limits: dict[str, Any]) -> str:
        until = time.monotonic() + limits["wall_s"]
        left = limits["cpu_s"]
        printed = 0
        waiter = select.poll()
        waiter.register(self.output, select.POLLIN)
        waiter.register(ended, select.POLLIN)
        while True:
            # no process can use more CPU time than passes on each of its processors
            patience = min(until - time.monotonic(), left / limits["processes"])
            over = False
            for fd, _ in waiter.poll(max(0.0, patience) * 1000 + 1):
                if fd == ended:
                    over = True
                    continue
                part = os.read(fd, 1 << 12)
                printed += len(part)
                if not part:
                    waiter.unregister(fd)
            if printed > limits["output_kb"] << 10:
                return "output"
            if over:
                return "done"
            left = limits["cpu_s"] - self._cpu()
            if left <= 0:
                return "CPU time"
            if time.monotonic() >= until:
                return "wall time"

    def _cpu(self) -> float:
        try:
            return time.clock_gettime((~self.pid << 3) | 2)  # another process's CPU clock, clock_getcpuclockid(3)
        except OSError:  # it has just ended
            return 0.0

    def close(self) -> bytes:
        """The results, once no process is left that could write more."""
        results = b""
        try:
            while part := os.read(self.results, 1 << 12):
                results += part
        except BlockingIOError:
            pass
        os.close(self.output)
        os.close(self.results)
        return results


def _child(request: int, output: int, results: int, steps: list[Callable[[], None]]) -> None:
    """The fork: it confines itself, says so with one byte, and only then reads what it shall run.

    As little as can be is done here, and nothing that could be done before: each page of memory that a fork writes to,
    if only to count a reference, costs it two microseconds.
    """
    try:
        dup2(request, 0)
        dup2(output, 1)
        dup2(output, 2)
        dup2(results, _RESULTS)
        closerange(_RESULTS + 1, _DESCRIPTORS)
        for step in steps:
            step()
        write(_RESULTS, _CONFINED)
    except BaseException as error:  # noqa: BLE001 the fork must never come back to the zygote's loop
        write(_RESULTS, f"{type(error).__name__}: {error}".encode())
        _exit(3)
    try:
        asked = b""
        while part := read(0, 1 << 12):  # to its end: a program's own input is empty
            asked += part
        write(_RESULTS, evaluate(*loads(asked)))
    finally:
        _exit(0)


def _seed() -> None:
    sys.modules["random"].seed(0)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, _SIGKILL)
    except ProcessLookupError:
        return


def _bury_all(_: int) -> None:
    """Ends what a fork left: a namespace whose first process, this one, has no child holds no other process."""
    try:
        while True:
            os.waitpid(-1, os.WNOHANG | _WALL)
            _kill(-1)
            os.waitpid(-1, _WALL)
    except ChildProcessError:
        return


def _bury_group(pid: int) -> None:
    """Ends what a fork left in its session, and what left that: it came to this process as its own child."""
    _kill(-pid)
    while True:
        try:
            found = os.waitpid(-1, os.WNOHANG)[0]
        except ChildProcessError:
            return
        if found:
            continue
        for name in os.listdir("/proc"):  # noqa: PTH208 pathlib costs a warm interpreter megabytes
            if name.isdigit() and _parent(name) == os.getpid():
                _kill(int(name))
        time.sleep(0.001)


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:  # noqa: PTH123
            return int(stat.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def warm_up() -> None:
    """Runs a program here, so that forks needn't write to memory that only changes when code first runs."""
    call = compile("one(1)", "<test>", "eval")
    asked = dumps(("", "def one(x):\n    return [x]\n", "", ((((call,),),) * 3)))
    own = sys.modules["__main__"]
    for _ in range(20):
        evaluate(*loads(asked))
    sys.modules["__main__"] = own


def fill_gaps() -> list[object]:
    """Objects in all gaps between others, until each size begins a new pool: what forks make then lies together.

    To be kept for as long as forks are made.
    """
    kept: list[object] = []
    for size in range(32, 513, 16):
        for number in range(1 << 14):
            kept.append(bytes(size - 33) if size > 32 else number + (1 << 20))
            if id(kept[-1]) % _POOL == _POOL_HEAD:
                break
    return kept


def descriptors() -> tuple[int, int]:
    """The pipes to the other side, moved away from where a program's own input and output will be."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    return requests, replies


def main() -> None:
    """Serves on standard input and output; an error before the first request goes to standard error."""
    limits = json.loads(frames.receive(0))
    for name in _PRELOADED:
        __import__(name)
    sys.modules["random"].seed(0)
    zygote = Zygote(limits)
    zygote.confine()
    warm_up()
    frames.send(1, b"ready")
    requests, replies = descriptors()
    sys.path[:] = [path for path in sys.path if path != limits["source"]]
    gc.collect()
    zygote.kept = fill_gaps()
    gc.freeze()
    zygote.serve(requests, replies)
    os._exit(0)
