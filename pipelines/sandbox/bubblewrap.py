"""The bubblewrap command around an interpreter: new namespaces, a read-only view of what Python needs, nothing else."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError

# The hash seed is fixed, so that a program that walks a set of strings does the same in every run.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_ISOLATED = (
    *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--as-pid-1"),
    *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--hostname", "sandbox"),
)
INSTALL = (
    "Install bubblewrap (apt install bubblewrap, dnf install bubblewrap) and allow user namespaces (sysctl "
    "user.max_user_namespaces above 0; kernel.unprivileged_userns_clone=1 or, on Ubuntu, "
    "kernel.apparmor_restrict_unprivileged_userns=0 where the system has these; in a container let the seccomp "
    "profile pass clone and unshare), or name a server with backend sandbox_fusion or piston"
)


@dataclass(frozen=True, slots=True)
class Within:
    """The command to put before an interpreter's, what is readable inside, and where the package lies there."""

    command: list[str]
    readable: list[str]
    source: str


def interpreter() -> str:
    """The interpreter behind a virtual environment, whose packages a program shall not see."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def within(source: Path) -> Within:
    """For the package at `source`/pipelines. Raises UserError where bubblewrap isn't installed."""
    program = shutil.which("bwrap")
    if program is None:
        raise UserError(f"verifier.sandbox.backend: bubblewrap isn't installed (no bwrap on PATH). {INSTALL}")
    own = [f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64"]
    folders = [path for path in dict.fromkeys((*_LIBRARIES, *own)) if Path(path).is_dir()]
    command = [program, *_ISOLATED]
    for path in folders:
        command += ["--symlink", str(Path(path).readlink()), path] if Path(path).is_symlink() else _shown(path)
    package = source / "pipelines"
    for name in ("__init__.py", "errors.py", "sandbox"):
        command += _shown(str(package / name), f"/source/pipelines/{name}")
    command += [*_shown(interpreter()), "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path in _DEVICES:
        command += ["--dev-bind", path, path]
    readable = [path for path in folders if not Path(path).is_symlink()]
    return Within([*command, "--remount-ro", "/", "--chdir", "/"], [*readable, "/source"], "/source")


def _shown(path: str, inside: str | None = None) -> list[str]:
    return ["--ro-bind", path, inside or path]
