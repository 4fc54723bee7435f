"""A small server that speaks the protocols of SandboxFusion and Piston, and really runs the programs."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """`broken` on the server is the raw reply to everything, where it is set."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        broken: bytes | None = self.server.broken  # type: ignore[attr-defined]
        if broken is not None:
            self._send(200, broken)
        elif self.path == "/run_code" and asked["language"] == "python":
            self._send(200, json.dumps(fusion(asked)).encode())
        elif self.path == "/api/v2/execute" and asked["language"] == "python":
            self._send(200, json.dumps(piston(asked)).encode())
        else:
            self._send(404, b'{"message": "no such thing"}')

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


def executed(code: str, seconds: float) -> subprocess.CompletedProcess[str] | None:
    command = [sys.executable, "-I", "-c", code]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return None


def fusion(asked: dict[str, Any]) -> dict[str, Any]:
    done = executed(asked["code"], asked["run_timeout"])
    if done is None:
        return {"status": "Failed", "message": "", "run_result": {"status": "TimeLimitExceeded", "stdout": ""}}
    run = {"status": "Finished", "return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    return {"status": "Failed" if done.returncode else "Success", "message": "", "run_result": run}


def piston(asked: dict[str, Any]) -> dict[str, Any]:
    done = executed(asked["files"][0]["content"], asked["run_timeout"] / 1000)
    if done is None:
        run: dict[str, Any] = {"stdout": "", "stderr": "", "code": None, "signal": "SIGKILL", "status": "TO"}
    else:
        run = {"stdout": done.stdout, "stderr": done.stderr, "code": done.returncode, "signal": None, "status": None}
    return {"language": "python", "version": "3.11.0", "run": run}


@contextmanager
def serving() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.broken = None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
