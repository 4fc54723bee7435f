"""Commands for a shell, each in a sandbox of its own over a small tree of files that is brought in and taken out.

A command meets an empty root with the machine's programs, read-only, two small folders in memory, no network and no
process but its own (bubblewrap), only the system calls of `seccomp.py`, and limits on each of its processes and on
their number. Root becomes nobody before, because the kernel doesn't count root's processes. When the command has ended
the shell around it, the first process of its namespace, ends all others, and sends the tree as a tar archive. What
comes back is the command's to forge: it could as well have written those files.
"""

import io
import os
import selectors
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.errors import UserError
from pipelines.sandbox.bubblewrap import INSTALL
from pipelines.sandbox.seccomp import architecture, program
from pipelines.tasks.verdict import VerifierFailed

Tree = Mapping[str, bytes | None]  # by path, relative, with slashes; None: a folder

_NOBODY = 65534
_FOLDERS = ("/usr/bin", "/usr/lib", "/usr/lib64", "/bin", "/lib", "/lib64", "/etc/alternatives")
_ISOLATED = (
    *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"),
    *("--uid", str(_NOBODY), "--gid", str(_NOBODY), "--cap-drop", "ALL", "--hostname", "sandbox"),
)
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/work", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
_STARTED = b"started\n"
# `ulimit -p` is dash's and busybox's limit of processes, `-u` bash's, where `-p` can't be set. -f counts 512 bytes.
_SCRIPT = """
tar xf - -C /work && cd /work || exit 1
ulimit -c 0 && ulimit -n 64 && ulimit -f {blocks} && ulimit -v {memory_kb} && ulimit -t {cpu_s} || exit 1
ulimit -p {processes} 2>/dev/null || ulimit -u {processes} || exit 1
echo started >&2
/bin/sh -c "$1" </dev/null 2>&1
code=$?
kill -9 -1 2>/dev/null
echo $code >&2
exec tar cf - --hard-dereference -C /work . >&2
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one command may use: seconds, bytes of its output, MiB of each process, processes; and of a tree, how many
    files and folders, bytes of all files, folders within each other.
    """

    cpu_s: int = 1
    wall_s: float = 1.5
    output: int = 1 << 16
    memory_mb: int = 64
    processes: int = 16
    entries: int = 64
    size: int = 1 << 15
    depth: int = 6


@dataclass(frozen=True, slots=True)
class Ended:
    """`failure` is the limit that ended the command, or that its tree is over: then `tree` is None. Else `code` is its
    exit status; `output` is what it wrote, errors too.
    """

    failure: str | None
    code: int
    output: str
    tree: dict[str, bytes | None] | None


class _Over(Exception):
    """A limit that the command ran into."""


def run(command: str, tree: Tree, limits: Limits) -> Ended:
    """Runs a command in the folder that holds the tree. Raises UserError without bubblewrap, VerifierFailed where it
    can't isolate.
    """
    program_fd, program_in = os.pipe()
    os.write(program_in, program(architecture(), forks=True, files=True))  # far less than a pipe holds
    os.close(program_in)
    try:
        process = _begun(command, limits, program_fd)
    finally:
        os.close(program_fd)
    try:
        output, told = _followed(process, _packed(tree), limits)
    except _Over as over:
        return Ended(str(over), 0, "", None)
    finally:
        _ended(process)
    if not told.startswith(_STARTED):
        last = (told.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        raise VerifierFailed(f"the sandbox can't start a shell: {last[:300]}")
    return _read(output, told[len(_STARTED) :], limits)


def check() -> None:
    """Whether commands can be isolated here: runs one. Raises UserError that names what to install or allow."""
    try:
        ended = run("cat a > b", {"a": b"1\n"}, Limits(wall_s=20.0))
    except VerifierFailed as error:
        raise UserError(f"task.environment: bubblewrap can't isolate a shell here: {error}. {INSTALL}") from error
    if ended.tree != {"a": b"1\n", "b": b"1\n"}:
        raise UserError(f"task.environment: not even a copy goes well in a shell: {ended.failure or ended.output}")


def _begun(command: str, limits: Limits, program_fd: int) -> "subprocess.Popen[bytes]":
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise UserError(f"task.environment: bubblewrap isn't installed (no bwrap on PATH). {INSTALL}")
    script = _SCRIPT.format(
        blocks=2 * limits.size // 512,
        memory_kb=limits.memory_mb << 10,
        cpu_s=limits.cpu_s,
        processes=limits.processes,
    )
    as_root = os.geteuid() == 0
    try:
        return subprocess.Popen(
            [bwrap, *_view(limits), "--seccomp", str(program_fd), "/bin/sh", "-c", script, "sh", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[program_fd],
            env={},
            cwd="/",
            bufsize=0,
            user=_NOBODY if as_root else None,
            group=_NOBODY if as_root else None,
            extra_groups=[] if as_root else None,
        )
    except OSError as error:
        raise VerifierFailed(f"bubblewrap can't be started: {error}") from error


def _view(limits: Limits) -> list[str]:
    """bubblewrap's arguments: the read-only root, and two folders that may be written to."""
    view = list(_ISOLATED)
    for path in _FOLDERS:
        if os.path.islink(path):  # noqa: PTH114 a name, not what it leads to
            view += ["--symlink", os.readlink(path), path]  # noqa: PTH115
        elif os.path.isdir(path):  # noqa: PTH112
            view += ["--ro-bind", path, path]
    for name, value in _ENVIRONMENT.items():
        view += ["--setenv", name, value]
    size = str(16 * limits.size)
    view += ["--dev-bind", "/dev/null", "/dev/null", "--size", size, "--tmpfs", "/work", "--size", size]
    return [*view, "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/"]


def _followed(process: "subprocess.Popen[bytes]", sent: bytes, limits: Limits) -> tuple[bytes, bytes]:
    """Sends the archive; the output, and what the shell around the command tells. Raises _Over for a limit."""
    pipes = (process.stdin, process.stdout, process.stderr)
    assert all(pipe is not None for pipe in pipes)
    stdin, stdout, stderr = (pipe for pipe in pipes if pipe is not None)
    into, out = stdin.fileno(), stdout.fileno()
    most = {out: limits.output, stderr.fileno(): 2 * limits.size + 1024 * (2 * limits.entries + 20)}
    got = {fd: bytearray() for fd in most}
    left, until = memoryview(sent), time.monotonic() + limits.wall_s
    os.set_blocking(into, False)
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(stdout, selectors.EVENT_READ)
        selector.register(stderr, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready:
                raise _Over("wall time")
            for key, _ in ready:
                fd = key.fd
                if fd == into:
                    left = left[_written(fd, left) :]
                    if not left:
                        selector.unregister(stdin)
                        stdin.close()
                    continue
                part = os.read(fd, 1 << 14)
                got[fd] += part
                if not part:
                    selector.unregister(fd)
                if len(got[fd]) > most[fd]:
                    raise _Over("too much output" if fd == out else "too many or too large files")
    return bytes(got[out]), bytes(got[stderr.fileno()])


def _written(fd: int, left: memoryview) -> int:
    """How much of it is done with: all where nobody reads any more."""
    try:
        return os.write(fd, left[: 1 << 14])
    except BrokenPipeError:
        return len(left)


def _ended(process: "subprocess.Popen[bytes]") -> None:
    """Ends bubblewrap, whose death ends its namespace, and waits until nobody within holds a pipe."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None and not pipe.closed:
            if pipe is not process.stdin:
                while os.read(pipe.fileno(), 1 << 16):
                    pass
            pipe.close()


def _packed(tree: Tree) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(tree):
            content, entry = tree[path], tarfile.TarInfo(path)
            entry.mode = 0o644
            if content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            entry.size = len(content or b"")
            archive.addfile(entry, io.BytesIO(content or b""))
    return packed.getvalue()


def _read(output: bytes, told: bytes, limits: Limits) -> Ended:
    code, _, packed = told.partition(b"\n")
    try:
        tree = _unpacked(packed, limits)
        status = int(code)
    except _Over as over:
        return Ended(str(over), 0, "", None)
    except (tarfile.TarError, ValueError, EOFError) as error:
        return Ended(f"its files can't be read: {type(error).__name__}", 0, "", None)
    return Ended(None, status, output.decode(errors="replace"), tree)


def _unpacked(packed: bytes, limits: Limits) -> dict[str, bytes | None]:
    """The files and folders of an archive, by path: what is neither is left out. Raises _Over."""
    tree: dict[str, bytes | None] = {}
    size = 0
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as archive:
        for entry in archive:
            path = PurePosixPath(entry.name)
            if not path.parts or not (entry.isreg() or entry.isdir()):
                continue
            size += entry.size if entry.isreg() else 0
            if size > limits.size or len(tree) == limits.entries or len(path.parts) > limits.depth:
                raise _Over("too many or too large files")
            found = archive.extractfile(entry) if entry.isreg() else None
            tree[str(path)] = None if found is None else found.read()
    return tree
