"""The other end of a webhook: checks who calls, and starts what is to be started when an alias moves.

    WEBHOOK_SECRET=... python examples/webhook_receiver.py --port 8088 -- ./deploy.sh

It needs Python alone. For each event whose signature is right, fresh and seen for the first time it runs the command
with MODEL, ALIAS and VERSION in its environment; without a command it prints them. The ledgers' own events don't count.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WINDOW_S = 300  # how old a delivery may be: who records one can't send it again next week
REMEMBERED = 10_000  # deliveries within the window; the server sends one again when it heard no answer
LARGEST = 1 << 20
SIGNATURE, TIMESTAMP, DELIVERY = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"
ENTITY = "model_version_alias"

Event = dict[str, Any]
Act = Callable[[Event], None]


class Rejected(Exception):
    """A call that isn't the server's, or not a fresh one."""


def checked(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> str:
    """The delivery's id, where its signature is right and its time is near `now` (Unix seconds). Raises Rejected."""
    given, timestamp, delivery = (headers.get(name) for name in (SIGNATURE, TIMESTAMP, DELIVERY))
    if not given or not timestamp or not delivery:
        raise Rejected("no signature")
    signed = f"{delivery}.{timestamp}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest())
    if not hmac.compare_digest(expected, given.encode("utf-8", "replace")):
        raise Rejected("wrong signature")
    # Signed, so whoever calls can't choose it.
    if not timestamp.isdigit() or abs(now - int(timestamp)) > WINDOW_S:
        raise Rejected("too old, or from the future")
    return delivery


class Receiver(ThreadingHTTPServer):
    """Answers 204 to a delivery it has taken, 401 to one that isn't the server's."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], secret: str, act: Act) -> None:
        super().__init__(address, Handler)
        self.secret, self.act = secret, act
        self.seen: OrderedDict[str, None] = OrderedDict()
        self.lock = threading.Lock()

    def is_first(self, delivery: str) -> bool:
        """Whether this delivery is seen for the first time."""
        with self.lock:
            if delivery in self.seen:
                return False
            self.seen[delivery] = None
            if len(self.seen) > REMEMBERED:
                self.seen.popitem(last=False)
            return True


class Handler(BaseHTTPRequestHandler):
    """One delivery."""

    server: Receiver

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST:
            self._answer(413)
            return
        body = self.rfile.read(int(length))
        try:
            delivery = checked(self.server.secret, dict(self.headers.items()), body, time.time())
        except Rejected as error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            self._answer(401)
            return
        event = json.loads(body)
        if self.server.is_first(delivery) and wanted(event):
            self.server.act(event)
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def wanted(event: Event) -> bool:
    """An alias of a model was set; one that keeps a former holder doesn't count."""
    data = event.get("data", {})
    is_set = event.get("entity") == ENTITY and event.get("action") == "created"
    return is_set and not str(data.get("alias", "")).endswith("-previous")


def runs(command: list[str]) -> Act:
    """Runs the command for an event, without a shell: names that come from outside are no code."""

    def act(event: Event) -> None:
        data = event["data"]
        told = {"MODEL": str(data["name"]), "ALIAS": str(data["alias"]), "VERSION": str(data["version"])}
        print(" ".join(f"{name}={value}" for name, value in told.items()), flush=True)
        if command:
            subprocess.Popen(command, env={**os.environ, **told})

    return act


def main() -> None:
    """Listens until it is stopped."""
    parser = argparse.ArgumentParser(description="Receives alias events of an MLflow server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8088)
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    secret = os.environ.get("WEBHOOK_SECRET")
    if not secret:
        sys.exit("WEBHOOK_SECRET: expected the secret with which the webhook was registered")
    receiver = Receiver((given.host, given.port), secret, runs(given.command))
    print(f"listening on {given.host}:{receiver.server_address[1]}", flush=True)
    receiver.serve_forever()


if __name__ == "__main__":
    main()
