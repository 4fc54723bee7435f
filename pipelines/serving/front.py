"""The door: one address whose names lead to an engine's versions, so that a name can move without a restart.

It lets through what is for users and nothing of what loads adapters. The engine stands behind it on loopback, with a
key that only the door knows.
"""

import asyncio
import hmac
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from pipelines.serving import metrics as told
from pipelines.serving.openai_form import BadRequest
from pipelines.serving.routes import Routes

MOST_BYTES = 2 * 2**20  # of a request's body
LOOK_S = 0.5
CLOSED_REQUEST = 499
KEPT = ("content-type", "retry-after")  # of the engine's headers


@dataclass(frozen=True)
class Behind:
    """The engine's address, and the key that it wants."""

    address: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}


def app_of(routes: Routes, behind: Behind, api_key: str | None) -> FastAPI:
    """What users reach: chat completions, the names, the engine's health and counts."""

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "")
        wanted = f"Bearer {api_key}"
        if api_key and request.url.path.startswith("/v1") and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise BadRequest("the key is missing or wrong", None, "invalid_api_key", status=401)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(check_key)])
    client = httpx2.AsyncClient(timeout=None, headers=behind.headers, limits=httpx2.Limits(max_connections=None))

    @app.exception_handler(BadRequest)
    async def refused(request: Request, error: BadRequest) -> Response:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(httpx2.HTTPError)
    async def away(request: Request, error: httpx2.HTTPError) -> Response:
        return JSONResponse(BadRequest("the engine doesn't answer", status=502).body(), 502)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=(await client.get(f"{behind.address}/health")).status_code)

    @app.get("/metrics")
    async def metrics() -> Response:
        found = await client.get(f"{behind.address}/metrics")
        return Response(found.text + told.serving(routes.named(), routes.swaps), media_type=told.TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        held = [
            {"id": name, "object": "model", "owned_by": "tunesmith", "root": at} for name, at in routes.named().items()
        ]
        return {"object": "list", "data": [{**model, "created": 0} for model in held]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _passed_on(request, routes, client, behind)

    return app


async def _passed_on(request: Request, routes: Routes, client: httpx2.AsyncClient, behind: Behind) -> Response:
    """The engine's reply, as it comes. Raises BadRequest where the request calls no name that is here."""
    body = await _body(request)
    leave = _Once(routes.taken(str(body.get("model"))))
    try:
        if leave.version is None:
            raise BadRequest(f"model: no {body.get('model')!r} here", "model", "model_not_found", status=404)
        address = f"{behind.address}/v1/chat/completions"
        asked = client.build_request("POST", address, json={**body, "model": leave.version})
        found = await _while_there(client.send(asked, stream=True), request)
    except BaseException:
        leave()
        raise
    if found is None:
        leave()
        return Response(status_code=CLOSED_REQUEST)
    headers = {name: found.headers[name] for name in KEPT if name in found.headers}
    return _Passed(_passed(found, leave), found.status_code, headers, leave)


class _Once:
    """A route that is taken, and left once, however often it is told to."""

    def __init__(self, taken: Any) -> None:
        self._taken = taken
        self.version: str | None = taken.__enter__()

    def __call__(self) -> None:
        taken, self._taken = self._taken, None
        if taken is not None:
            taken.__exit__(None, None, None)


class _Passed(StreamingResponse):
    """A reply that is passed on as it comes; whatever becomes of it, the route is left."""

    def __init__(self, content: AsyncIterator[bytes], status: int, headers: dict[str, str], leave: _Once) -> None:
        super().__init__(content, status, headers)
        self.leave = leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.leave()


async def _passed(found: httpx2.Response, leave: _Once) -> AsyncIterator[bytes]:
    try:
        async for part in found.aiter_bytes():
            yield part
    finally:
        leave()
        await found.aclose()


async def _while_there(work: Any, request: Request) -> httpx2.Response | None:
    """The engine's reply; None, with the question withdrawn, where the client has left."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_S)
            if not task.done() and await request.is_disconnected():
                return None
        reply: httpx2.Response = task.result()
        return reply
    finally:
        task.cancel()


async def _body(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises BadRequest where it is none, or too large."""
    held = b""
    async for part in request.stream():
        held += part
        if len(held) > MOST_BYTES:
            raise BadRequest(f"the body is over {MOST_BYTES:,} bytes", status=413)
    try:
        found = json.loads(held)
    except (ValueError, RecursionError):
        raise BadRequest("the body is no JSON") from None
    if not isinstance(found, dict):
        raise BadRequest("expected a JSON object")
    return found


class Door:
    """The door's server, in a thread of its own."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        settings = uvicorn.Config(
            app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=10
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, name="door", daemon=True)

    def open(self) -> None:
        """Listens from now on."""
        self._thread.start()

    def close(self, patience_s: float) -> None:
        """Takes no more requests, and lets those under way end."""
        self._server.should_exit = True
        self._thread.join(patience_s)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()
