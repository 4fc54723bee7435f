"""What code made a run: git commit, changes on top of it, lock file, library versions."""

import hashlib
import subprocess
from functools import cache
from importlib.metadata import version

from pipelines.config.paths import PROJECT
from pipelines.product import digest_of, file_hash

LOCK = PROJECT / "requirements.lock"
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "mlflow")


@cache
def code_digest() -> str:
    """sha256 over every file of the package: what a stage does is decided there."""
    package = PROJECT / "pipelines"
    files = sorted(path for path in package.rglob("*") if path.suffix in {".py", ".jinja", ".css"})
    return digest_of({path.relative_to(package).as_posix(): file_hash(path) for path in files})


@cache
def source_tags() -> dict[str, str]:
    """Tags that name the code and the libraries of a run."""
    tags = {"code.digest": code_digest(), "lock.digest": _lock_digest()}
    tags |= {f"version.{name}": version(name) for name in LIBRARIES}
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


def _lock_digest() -> str:
    return hashlib.sha256(LOCK.read_bytes()).hexdigest() if LOCK.exists() else "none"


def _git(*arguments: str) -> str:
    """The command's output; empty where this is no git checkout or git is absent."""
    try:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
