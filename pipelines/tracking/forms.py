"""A written model in the forms in which it is used: as MLflow loads it, and behind MLflow's scoring server."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, scoring_server

from pipelines.tracking.destination import TRACES

HOST = "127.0.0.1"
TO_START_S = 60

Record = Mapping[str, Any]


def loaded(folder: Path) -> PyFuncModel:
    """The model in a folder, as a server loads it."""
    # Rows that are asked here are no conversations of a deployment's users.
    with _unset(TRACES), _own_path():
        return mlflow.pyfunc.load_model(str(folder))


def answered(model: PyFuncModel, records: Sequence[Record]) -> list[dict[str, Any]]:
    """The completion of each conversation; `{"error": ...}` for one that the model's schema doesn't take."""
    return [_completion(model, record) for record in records]


def _completion(model: PyFuncModel, record: Record) -> dict[str, Any]:
    try:
        return dict(model.predict(dict(record)))
    except MlflowException as error:
        return {"error": str(error)}


def answered_over_http(model: PyFuncModel, records: Sequence[Record]) -> list[dict[str, Any]]:
    """The completion of each conversation from MLflow's scoring server, started for it on this machine."""
    with _serving(model) as address:
        return [_posted(f"{address}/invocations", record) for record in records]


def _posted(address: str, record: Record) -> dict[str, Any]:
    body = json.dumps(record).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as error:
        return {"error": error.read().decode("utf-8", "replace")}


@contextlib.contextmanager
def _serving(model: PyFuncModel) -> Iterator[str]:
    """The address of a scoring server over a model that is loaded already."""
    import uvicorn

    listener = socket.create_server((HOST, 0))
    server = uvicorn.Server(uvicorn.Config(scoring_server.init(model), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="scoring", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + TO_START_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("MLflow's scoring server didn't start")
            time.sleep(0.01)
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextlib.contextmanager
def _own_path() -> Iterator[None]:
    """MLflow leaves a model's code at the front of the path, where it would hide ours from processes of this one."""
    kept = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = kept


@contextlib.contextmanager
def _unset(variable: str) -> Iterator[None]:
    kept = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[variable] = kept
