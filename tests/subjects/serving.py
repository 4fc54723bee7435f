"""Servers that tests start as processes of their own on free loopback ports, and end by their process."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import httpx2

from pipelines.config.paths import PROJECT

HERE = Path(__file__).parent
START_S = 60.0
OWN, TRANSFORMERS = "own", "transformers"


@dataclass(frozen=True)
class Faulty:
    """The server that misbehaves; `at` is what a configuration would name."""

    address: str

    @property
    def at(self) -> str:
        return f"{self.address}/v1"

    def seen(self) -> dict[str, Any]:
        """What has come in since it last forgot."""
        return cast(dict[str, Any], httpx2.get(f"{self.address}/seen").json())

    def forget(self) -> None:
        httpx2.post(f"{self.address}/forget", json={})


@dataclass(frozen=True)
class Served:
    """A model behind an OpenAI-compatible endpoint."""

    at: str
    model: str


def transformers_lacks() -> str | None:
    """What `transformers serve` would need that isn't installed."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
    return ", ".join(missing) or None


@contextlib.contextmanager
def faulty() -> Iterator[Faulty]:
    """The faulty server, at a port of its choice."""
    command = [sys.executable, str(HERE / "faulty_server.py")]
    with _process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield Faulty(f"http://127.0.0.1:{int(process.stdout.readline())}")


@contextlib.contextmanager
def serving(folder: Path, kind: str, log: Path, port: int | None = None) -> Iterator[Served]:
    """A model's folder served in float32 on the CPU: by `transformers serve`, or by `openai_server.py`."""
    port = port or free_port()
    if kind == TRANSFORMERS:
        program = Path(sys.executable).with_name("transformers")
        command = [str(program), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--device", "cpu", "--dtype", "float32"]
    else:
        command = [sys.executable, str(HERE / "openai_server.py"), str(folder), str(port)]
    with log.open("wb") as stream, _process(command, stdout=stream, stderr=stream) as process:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield Served(f"http://127.0.0.1:{port}/v1", str(folder))


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def _process(
    command: Sequence[str], stdout: int | IO[bytes], stderr: int | IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=stdout, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


def wait(health: str) -> None:
    """Until a server that somebody else starts is there."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(health, timeout=1.0).is_success:
                return
        time.sleep(0.1)
    raise RuntimeError(f"no server came up at {health}")


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(health, timeout=1.0).is_success:
                return
        time.sleep(0.1)
    raise RuntimeError(f"no server came up: {log.read_text(errors='replace')[-2000:]}")
