"""The engine `transformers`: an OpenAI-compatible server that answers as the evaluated subject does.

A process of its own on loopback, started by `serve`: `python -m pipelines.serving.backend FILE`. Whoever asks it has
to know the key that it was started with. One answer is made at a time, as it was evaluated; the others wait in turn.
"""

import asyncio
import hmac
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from pipelines.serving.loaded import Models
from pipelines.serving.metrics import TYPE
from pipelines.serving.openai_form import Answer, Asked, BadRequest, Writer, error_body, logprobs_of, read, said
from pipelines.serving.placed import KEY, Placed
from pipelines.serving.queued import END, Engine, Work

LOOK_S = 0.5  # how often is looked whether whoever waits is still there
CLOSED_REQUEST = 499  # as nginx calls it: the client hung up


def app_of(engine: Engine, key: str) -> FastAPI:
    """The server's addresses."""

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if request.url.path != "/health" and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise BadRequest("a key is needed", status=401)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(check_key)])
    models = engine.models

    @app.exception_handler(BadRequest)
    async def refused(request: Request, error: BadRequest) -> Response:
        return JSONResponse(error.body(), error.status, {"Retry-After": "1"} if error.status == 429 else None)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(engine.metrics.text(), media_type=TYPE)

    @app.get("/v1/models")
    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in models.slots]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await replied(engine, request)

    _let_load(app, models)
    return app


def _let_load(app: FastAPI, models: Models) -> None:
    """The addresses by which `serve` brings versions and takes them off; they are vLLM's."""

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        placed = Placed.of(await body_of(request))
        await asyncio.to_thread(models.load, placed)
        return JSONResponse({"loaded": placed.name})

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        await asyncio.to_thread(models.unload, (await body_of(request))["lora_name"])
        return JSONResponse({})


async def replied(engine: Engine, request: Request) -> Response:
    """The reply to a request for a chat completion. Raises BadRequest where it can't be answered."""
    try:
        asked = read(await body_of(request))
        work = engine.begin(asked)
    except BadRequest as error:
        engine.metrics.done(error.status, 0.0)
        raise
    writer = Writer(asked.model, work.slot.fingerprint)
    if asked.stream:
        return StreamingResponse(streamed(asked, work, writer), media_type="text/event-stream")
    return await whole(asked, work, writer, request)


async def body_of(request: Request) -> Any:
    """The body's JSON. Raises BadRequest where it is none."""
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise BadRequest("the body is no JSON") from None


async def whole(asked: Asked, work: Work, writer: Writer, request: Request) -> Response:
    """The chat completion; given up where the client leaves."""
    while not work.future.done():
        await asyncio.wait({work.future}, timeout=LOOK_S)
        if not work.future.done() and await request.is_disconnected():
            work.gone = True
            return Response(status_code=CLOSED_REQUEST)
    return JSONResponse(writer.whole(asked, work.future.result()))


async def streamed(asked: Asked, work: Work, writer: Writer) -> AsyncIterator[str]:
    """The events of a stream; leaving it early ends the model's work."""
    try:
        yield _event(writer.piece({"role": "assistant", "content": ""}))
        told = ""
        while (piece := await work.pieces.get()) is not END:
            told += piece
            yield _event(writer.piece({"content": piece}))
        if error := work.future.exception():
            yield _event(error_body(f"an error of the server's: {type(error).__name__}", 500))
            return
        for chunk in _last(asked, work.future.result(), writer, told):
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    finally:
        work.gone = True


def _last(asked: Asked, answer: Answer, writer: Writer, told: str) -> list[dict[str, Any]]:
    """What is left of the answer, why it ends, and what it took."""
    message, reason = said(answer, asked.tools)
    if not answer.text.startswith(told):
        raise RuntimeError(f"streamed {told!r}, but the answer is {answer.text!r}")
    rest = (message["content"] or "")[len(told) :]
    chunks = [writer.piece({"content": rest})] if rest else []
    if calls := message.get("tool_calls"):
        chunks.append(writer.piece({"tool_calls": calls}))
    chunks.append(writer.piece({}, reason, logprobs_of(answer)))
    return [*chunks, writer.count(answer)] if asked.counted else chunks


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def main(file: str) -> None:
    """Serves what the file says: `port`, `queue` and `versions`, on one base."""
    import uvicorn

    told = json.loads(Path(file).read_text(encoding="utf-8"))
    first, *others = (Placed.of(version) for version in told["versions"])
    models = Models.of(first)
    for placed in others:
        models.load(placed)
    app = app_of(Engine(models, told["queue"]), os.environ[KEY])
    uvicorn.run(app, host="127.0.0.1", port=told["port"], log_level="warning", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1])
