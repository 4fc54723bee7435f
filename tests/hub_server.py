"""A small server that speaks enough of the Hub's API to serve a model's files, and whose branches can move."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Hub:
    """One repository: commits are folders, `main` is a commit's name."""

    def __init__(self, repository: str, commits: dict[str, Path], main: str) -> None:
        self.repository, self.commits, self.main = repository, commits, main
        self.asked: list[str] = []  # revisions of the files that were asked for
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def commit(self, revision: str) -> str:
        return self.main if revision == "main" else revision

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path, hub = self.path.partition("?")[0].strip("/"), self.hub
        if path == f"api/models/{hub.repository}" or path.startswith(f"api/models/{hub.repository}/revision/"):
            self._info(path.partition("/revision/")[2] or "main")
        elif path.startswith(f"{hub.repository}/resolve/"):
            revision, _, name = path.removeprefix(f"{hub.repository}/resolve/").partition("/")
            self._file(hub.commit(revision), name, with_body)
        else:
            self._missing("EntryNotFound" if path.startswith(f"api/models/{hub.repository}/") else "RepoNotFound")

    def _info(self, revision: str) -> None:
        commit = self.hub.commit(revision)
        if commit not in self.hub.commits:
            self._missing("RevisionNotFound")
            return
        names = sorted(path.name for path in self.hub.commits[commit].iterdir())
        told: dict[str, Any] = {"id": self.hub.repository, "modelId": self.hub.repository, "sha": commit}
        self._send(json.dumps(told | {"siblings": [{"rfilename": name} for name in names]}).encode(), {}, True)

    def _file(self, commit: str, name: str, with_body: bool) -> None:
        self.hub.asked.append(commit)
        path = self.hub.commits.get(commit, Path("nowhere")) / name
        if not path.is_file():
            self._missing("EntryNotFound" if commit in self.hub.commits else "RevisionNotFound", commit)
            return
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self._send(content, {"ETag": f'"{digest}"', "X-Repo-Commit": commit}, with_body)

    def _missing(self, code: str, commit: str = "") -> None:
        self.send_response(404)
        for name, value in {"X-Error-Code": code, "X-Repo-Commit": commit, "Content-Length": "0"}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""
