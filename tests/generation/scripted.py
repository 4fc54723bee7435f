"""A chat endpoint over real HTTP whose answers a test writes; a teacher of the bank who knows the demonstrations."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipelines.environments.rows import generate

Answer = dict[str, Any] | str | int  # a message, its text, or an HTTP status
OVERRIDES = ["teacher.license={id: CC0-1.0, conditions: null, url: null}", "teacher.model=scripted"]


class Scripted(ThreadingHTTPServer):
    """`bodies` are the requests that were answered with 200, in their order; those for a probe's token are not."""

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.bodies, self.lock = answer, list[dict[str, Any]](), threading.Lock()

    @property
    def overrides(self) -> list[str]:
        return ["teacher.kind=endpoint", f"teacher.at=http://127.0.0.1:{self.server_port}/v1", *OVERRIDES]

    def keys(self) -> list[str]:
        return [json.dumps([body["messages"], body["seed"]], sort_keys=True) for body in self.bodies]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Scripted

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        probe = body["messages"][-1]["content"] == "Hi"
        said = self.server.answer(body)
        if isinstance(said, int):
            return self._send(said, {"error": {"message": f"told to say {said}"}})
        message = {"role": "assistant", "content": said} if isinstance(said, str) else said
        if not probe:
            with self.server.lock:
                self.server.bodies.append(body)
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return self._send(200, {"choices": [{"finish_reason": "stop", "message": message}], "usage": usage})

    def _send(self, status: int, payload: dict[str, Any]) -> None:
        content = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def scripted(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[Scripted]:
    server = Scripted(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def banker(count: int, seed: int) -> Callable[[dict[str, Any]], Answer]:
    """Says the demonstrations' turns, but for three kinds: it freezes a card instead of declining, writes a call
    without an end where a limit is to be raised, and looks for ever where there is a condition.
    """
    records = {record["messages"][0]["content"]: record for record in generate(count, seed, {})}

    def call(name: str, **arguments: int) -> dict[str, Any]:
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}

    def answer(body: dict[str, Any]) -> Answer:
        (asked,) = (message["content"] for message in body["messages"] if message["role"] == "user")
        if asked == "Hi":
            return "Hi"
        record, said = records[asked], sum(m["role"] == "assistant" for m in body["messages"])
        if record["label"] == "if":
            return call("show")
        if record["label"] == "raise":
            return '<tool_call>{"name": "limit"'
        if record["label"] == "decline":
            if said == 1:
                return call("freeze", card=int(next(iter(json.loads(body["messages"][-1]["content"])["cards"]))))
            return call("show") if said == 0 else "Done."
        turn = [m for m in record["messages"] if m["role"] == "assistant"][said]
        if not turn.get("tool_calls"):
            return str(turn["content"])
        function = turn["tool_calls"][0]["function"]
        return call(function["name"], **function["arguments"])

    return answer
