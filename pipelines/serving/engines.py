"""The three engines as programs: which command serves verified versions, and where it is asked whether it is up."""

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines import apart
from pipelines.config.serving import Serve
from pipelines.serving import placed as ours
from pipelines.serving import vllm
from pipelines.serving.front import Behind
from pipelines.serving.placed import Placed
from pipelines.serving.process import free_port


@dataclass(frozen=True)
class Program:
    """A command with its variables; `behind` is where it listens, `health` the address that answers once it is up."""

    command: list[str]
    variables: dict[str, str]
    behind: Behind
    health: str


def program(settings: Serve, versions: Sequence[Placed], files: Path, work: Path) -> Program:
    """The engine that the block names. `files` are those of the first version; `work` takes what the engine reads.

    Raises UserError where vLLM's environment isn't made, or vLLM can't hold a version.
    """
    if settings.engine == "mlflow":
        return _mlflow(settings, files)
    behind = Behind(f"http://127.0.0.1:{free_port()}", secrets.token_urlsafe(32))
    port = behind.address.rpartition(":")[2]
    if settings.engine == "vllm":
        return _vllm(settings, versions, behind, port)
    told = work / "engine.json"
    content = {"port": int(port), "queue": settings.queue, "versions": [version.as_json() for version in versions]}
    told.write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.serving.backend", str(told)]
    return Program(command, {ours.KEY: behind.key}, behind, f"{behind.address}/health")


def _mlflow(settings: Serve, files: Path) -> Program:
    """MLflow's own server on the copy, whose code it runs: the one that was evaluated."""
    address = f"http://{_asked_at(settings.host)}:{settings.port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(files), "--env-manager", "local"]
    command += ["-h", settings.host, "-p", str(settings.port), *settings.flags]
    # The version's own package is put before ours on the path by MLflow; what it compiles stays out of the copy.
    # It starts `uvicorn` by name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    variables = {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    return Program(command, variables, Behind(address, ""), f"{address}/ping")


def _vllm(settings: Serve, versions: Sequence[Placed], behind: Behind, port: str) -> Program:
    python = apart.python("vllm", "serve.engine")
    adapters = {version.name: version.adapter for version in versions}
    arguments = vllm.arguments(versions[0].settings, adapters, settings.flags)
    command = [str(python.parent / "vllm"), "serve", *arguments, "--host", "127.0.0.1", "--port", port]
    variables: Mapping[str, str] = {**vllm.VARIABLES, vllm.KEY: behind.key}
    return Program(command, dict(variables), behind, f"{behind.address}/health")


def _asked_at(host: str) -> str:
    """Where this machine reaches what listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host
