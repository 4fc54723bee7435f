"""Servers that run programs: the protocols of SandboxFusion and Piston."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import schema
from pipelines.sandbox import program
from pipelines.tasks.verdict import VerifierFailed

_GRACE_S = 30.0  # a queue, the network, the start of the server's container


@dataclass(frozen=True, slots=True)
class Told:
    """What a server says of a run: `end` is `done` or the limit that was met."""

    end: str
    stdout: str


def ask(settings: schema.Sandbox, request: str) -> tuple[str, bytes]:
    """Runs the calls of a request (`program.evaluate`) on the server: how it ended, and the results.

    Raises VerifierFailed where the server isn't reached, reports an error of its own, or speaks another protocol.
    """
    path, body, read = _PROTOCOLS[settings.backend]
    code = f"{Path(program.__file__).read_text(encoding='utf-8')}\n\nprint_results({request!r})\n"
    told = read(_post(f"{str(settings.url).rstrip('/')}{path}", body(settings, code), settings))
    nonce = json.loads(request)["nonce"]
    found = told.stdout.rpartition(f"\n{nonce} ")
    return told.end, f"{nonce} {found[2].partition(chr(10))[0]}".encode() if found[1] else b""


def _post(url: str, body: dict[str, Any], settings: schema.Sandbox) -> Any:
    sent = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
    most = 1 << 24
    try:
        with urllib.request.urlopen(sent, timeout=settings.wall_s + _GRACE_S) as reply:
            return json.loads(reply.read(most))
    except urllib.error.HTTPError as error:
        text = error.read(500).decode(errors="replace")
        raise VerifierFailed(f"{url} answers with status {error.code}: {text}") from error
    except (OSError, ValueError) as error:
        raise VerifierFailed(f"{url} doesn't answer as a {settings.backend} server: {error}") from error


def _fusion_body(settings: schema.Sandbox, code: str) -> dict[str, Any]:
    return {
        "code": code,
        "language": "python",
        "run_timeout": settings.wall_s,
        "memory_limit_MB": settings.memory_mb,
    }


def _fusion(reply: Any) -> Told:
    """`status` is Success, Failed or SandboxError; `run_result.status` Finished, Error or TimeLimitExceeded."""
    status = reply.get("status") if isinstance(reply, dict) else None
    run = reply.get("run_result") if isinstance(reply, dict) else None
    if status not in ("Success", "Failed") or not isinstance(run, dict):
        raise VerifierFailed(f"the server failed: {str(reply)[:300]}")
    if run.get("status") == "TimeLimitExceeded":
        return Told("wall time", "")
    return Told("done", str(run.get("stdout") or ""))


def _piston_body(settings: schema.Sandbox, code: str) -> dict[str, Any]:
    return {
        "language": "python",
        "version": "*",
        "files": [{"name": "program.py", "content": code}],
        "stdin": "",
        "run_timeout": round(settings.wall_s * 1000),
        "run_memory_limit": settings.memory_mb << 20,
    }


def _piston(reply: Any) -> Told:
    """`run.status` (of newer servers): TO time, OL and EL output, XX the server itself; `run.signal` ended it."""
    run = reply.get("run") if isinstance(reply, dict) else None
    if not isinstance(run, dict) or not isinstance(run.get("stdout"), str) or run.get("status") == "XX":
        raise VerifierFailed(f"the server failed: {str(reply)[:300]}")
    ends = {"TO": "wall time", "OL": "output", "EL": "output"}
    end = ends.get(str(run.get("status")), "died" if run.get("signal") else "done")
    return Told(end, run["stdout"])


_PROTOCOLS: dict[str, tuple[str, Callable[[schema.Sandbox, str], dict[str, Any]], Callable[[Any], Told]]] = {
    "sandbox_fusion": ("/run_code", _fusion_body, _fusion),
    "piston": ("/api/v2/execute", _piston_body, _piston),
}
