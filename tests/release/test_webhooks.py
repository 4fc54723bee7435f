"""Alias events of a real server reach the example receiver; what anyone else sends doesn't."""

import base64
import hashlib
import hmac
import http.client
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from mlflow.tracking import MlflowClient

from examples.webhook_receiver import DELIVERY, SIGNATURE, TIMESTAMP, Receiver, Rejected, checked
from pipelines.errors import UserError
from pipelines.tracking import moves, webhooks
from tests.test_mlflow_run import free_port, served

SECRET = "a secret of some length"
BODY = b'{"entity":"model_version_alias","action":"created","data":{"name":"m","alias":"staging","version":"3"}}'
NOW = 1_790_000_000
# By OpenSSL: printf 'd1.1790000000.%s' "$BODY" | openssl dgst -sha256 -hmac "$SECRET" -binary | base64
SIGNED = {DELIVERY: "d1", TIMESTAMP: str(NOW), SIGNATURE: "v1,6+WbNPvAY+9Bh/6vHLTbHU8UAYrLel3CACOCDbT8Mw8="}


def test_a_right_signature_is_taken() -> None:
    assert checked(SECRET, SIGNED, BODY, NOW + 299) == "d1"


@pytest.mark.parametrize(
    ("changed", "body", "now", "told"),
    [
        ({}, BODY.replace(b"3", b"4"), NOW, "wrong signature"),
        ({DELIVERY: "d2"}, BODY, NOW, "wrong signature"),
        ({TIMESTAMP: str(NOW + 1)}, BODY, NOW, "wrong signature"),
        ({SIGNATURE: "v1,AAAA"}, BODY, NOW, "wrong signature"),
        ({SIGNATURE: ""}, BODY, NOW, "no signature"),
        ({}, BODY, NOW + 301, "too old"),
        ({}, BODY, NOW - 301, "too old"),
    ],
)
def test_any_other_is_rejected(changed: dict[str, str], body: bytes, now: float, told: str) -> None:
    with pytest.raises(Rejected, match=told):
        checked(SECRET, SIGNED | changed, body, now)


def test_a_webhook_without_secret_or_in_the_clear_is_refused() -> None:
    with pytest.raises(UserError, match="WEBHOOK_SECRET: expected at least 16"):
        webhooks.register("ci", "https://ci.example.com", "short")
    for url in ("http://ci.example.com", "http://localhost.example.com/", "ftp://localhost"):
        with pytest.raises(UserError, match="url: expected https"):
            webhooks.register("ci", url, SECRET)


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, "queue.Queue[dict]"]]:
    events: queue.Queue[dict] = queue.Queue()
    made = Receiver(("127.0.0.1", 0), SECRET, events.put)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made, events
    made.shutdown()
    made.server_close()


def posted(port: int, body: bytes, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/", body, headers)
    return connection.getresponse().status


def test_the_receiver_acts_once_and_only_on_what_is_signed(receiver: tuple[Receiver, "queue.Queue[dict]"]) -> None:
    server, events = receiver
    port = int(server.server_address[1])
    now = str(int(time.time()))
    mac = hmac.new(SECRET.encode(), f"d9.{now}.".encode() + BODY, hashlib.sha256).digest()
    signed = {DELIVERY: "d9", TIMESTAMP: now, SIGNATURE: f"v1,{base64.b64encode(mac).decode()}"}
    assert posted(port, BODY, {}) == 401
    assert posted(port, BODY + b" ", signed) == 401
    assert [posted(port, BODY, signed) for _ in range(2)] == [204, 204]
    assert events.get(timeout=5)["data"]["version"] == "3"
    assert events.empty()  # the same delivery again does nothing


@pytest.mark.slow
def test_a_move_of_an_alias_reaches_the_receiver(
    receiver: tuple[Receiver, "queue.Queue[dict]"], tmp_path: Path
) -> None:
    server, events = receiver
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", f"{tmp_path}/artifacts", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", address.rpartition(":")[2]]
    extra = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    with served(command, f"{address}/health", extra, tmp_path / "server.log"):
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        webhooks.register("ci", url, SECRET, client)
        webhooks.register("ci", url, SECRET, client)  # takes the place of the first
        assert [one.name for one in client.list_webhooks()] == ["ci"]
        client.create_registered_model("m")
        for _ in range(2):
            client.create_model_version("m", "hf://made/up@1")
        by = {"by": "a", "at": "now", "run": "", "reason": "", "digest": ""}
        moves.move(client, "m", {"alias": "staging", "from": None, "to": "1", "kind": "promote", **by})
        moves.move(client, "m", {"alias": "staging", "from": "1", "to": "2", "kind": "promote", **by})
        told = [events.get(timeout=60)["data"] for _ in range(2)]
        assert sorted(json.dumps(one, sort_keys=True) for one in told) == [
            json.dumps({"alias": "staging", "name": "m", "version": version}, sort_keys=True) for version in "12"
        ]
        assert events.empty()
