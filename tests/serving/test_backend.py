"""The engine `transformers` over HTTP: it answers as the evaluated subject does, and refuses what would differ."""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from benchmarks import load
from pipelines.config.block import EndpointFields
from pipelines.serving.backend import app_of
from pipelines.serving.front import Door
from pipelines.serving.loaded import Models
from pipelines.serving.placed import Placed
from pipelines.serving.queued import Engine
from pipelines.subjects.endpoint import Endpoint, EndpointSubject
from pipelines.subjects.local import LocalSubject
from pipelines.subjects.subject import Question
from pipelines.tracking import registry
from tests.serving.conftest import QUESTIONS, TOOLS, Released
from tests.tracking.servers import free_port

KEY = "the-key-of-the-engine"
QUEUE = 2


class Running:
    """The engine on loopback, in this process."""

    def __init__(self, released: Released, folder: Any) -> None:
        import mlflow

        mlflow.set_tracking_uri(released.store)
        self.placed = []
        for version in (released.first, released.other):
            files = registry.copied(version, folder / version.number)
            adapter, settings = registry.described(files, version.uri)
            self.placed.append(Placed(f"served/{version.number}", adapter, settings, version.digest))
        self.models = Models.of(self.placed[0])
        self.engine = Engine(self.models, QUEUE)
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.door = Door(app_of(self.engine, KEY), "127.0.0.1", self.port)
        self.door.open()
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0)

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx2.Response:
        return httpx2.post(f"{self.address}{path}", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def talkative(self, max_tokens: int) -> list[dict[str, str]]:
        """What it says most to: how long a model of a few steps talks differs from machine to machine."""
        asked = [[{"role": "user", "content": text}] for text in (*QUESTIONS, *(f"{q} " * 3 for q in QUESTIONS))]
        used = [self.ask(messages=m, max_tokens=max_tokens).json()["usage"]["completion_tokens"] for m in asked]
        assert max(used) > 2, used
        return asked[used.index(max(used))]

    def ask(self, **further: Any) -> httpx2.Response:
        return self.post(**{"model": "served/1", "messages": [{"role": "user", "content": QUESTIONS[0]}], **further})


@pytest.fixture(scope="module")
def running(released: Released, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Running]:
    found = Running(released, tmp_path_factory.mktemp("running"))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx2.get(f"{found.address}/health")
            break
        except httpx2.HTTPError:
            time.sleep(0.05)
    yield found
    found.door.close(10)


def test_answers_are_the_recorded_ones_whole_and_streamed(running: Running, released: Released) -> None:
    for row in released.answers[released.first.uri]:
        given: Any = {"model": "served/1", "messages": row["messages"], "temperature": 0}
        if row["tools"]:
            given["tools"] = row["tools"]
        reply = running.client.chat.completions.create(**given)
        assert reply.choices[0].message.content == row["answer"]
        chunks = list(
            running.client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True})
        )
        said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(said) == row["answer"]
        assert chunks[-1].usage == reply.usage
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == reply.choices[0].finish_reason


def test_a_stream_comes_while_the_model_is_at_work(running: Running) -> None:
    messages = running.talkative(max_tokens=200)
    given: Any = {"model": "served/1", "messages": messages, "max_tokens": 200}
    stream = running.client.chat.completions.create(**given, stream=True)
    next(iter(stream))
    words = next(chunk for chunk in stream if chunk.choices[0].delta.content)
    assert running.engine.metrics.working == 1, words
    stream.close()


def test_the_endpoint_subject_hears_what_the_local_one_says(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers, tokens and confidence, as evaluate asks."""
    monkeypatch.setenv("ENGINE_KEY", KEY)
    fields = EndpointFields(
        at=f"{running.address}/v1",
        model="served/1",
        api_key="env:ENGINE_KEY",
        concurrency=2,
        timeout_s=60.0,
        retries=0,
        price_in=None,
        price_out=None,
        spending_limit=None,
    )
    slot = running.models.slots["served/1"]
    running.models.model.set_adapter(slot.adapter)
    local = LocalSubject("local", {}, running.models.model, slot.tokenizer, slot.template, 1, 0)
    remote = EndpointSubject("remote", Endpoint(fields, "evaluate.subjects.remote"), 0)
    questions = [Question([{"role": "user", "content": text}]) for text in QUESTIONS]
    here = local.answer(questions, 8, lambda count: None)
    there = remote.answer(questions, 8, lambda count: None)
    for ours, theirs in zip(here, there, strict=True):
        assert (ours.text, ours.finished, ours.num_tokens, ours.prompt_tokens) == (
            theirs.text,
            theirs.finished,
            theirs.num_tokens,
            theirs.prompt_tokens,
        )
        assert theirs.probability == pytest.approx(ours.probability, rel=1e-4)


def test_calls_of_tools_in_openais_form() -> None:
    from pipelines.serving.openai_form import Answer, read, said

    text = 'I look.\n<tool_call>{"name": "track_card", "arguments": {"card": "gold"}}</tool_call>'
    message, reason = said(Answer(text, 1, 1, True), TOOLS)
    (call,) = message["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("track_card", {"card": "gold"})
    assert (message["content"], reason) == ("I look.", "tool_calls")
    # And back: the conversation that goes on is rendered as in training, with arguments as an object.
    asked = read({"model": "m", "messages": [{"role": "user", "content": "?"}, message], "tools": TOOLS})
    assert asked.messages[1]["tool_calls"][0]["function"] == {"name": "track_card", "arguments": {"card": "gold"}}
    assert said(Answer("<tool_call>{broken", 1, 1, True), TOOLS) == (
        {"role": "assistant", "content": "<tool_call>{broken"},
        "stop",
    )


def test_the_limit_and_the_stop_string_end_an_answer(running: Running) -> None:
    messages = running.talkative(max_tokens=8)
    short = running.ask(messages=messages, max_tokens=2).json()
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 2
    whole = running.ask(messages=messages).json()["choices"][0]["message"]["content"]
    sign = whole[1]
    for stream in (False, True):
        reply = running.ask(messages=messages, stop=sign, stream=stream)
        text = _streamed(reply) if stream else reply.json()["choices"][0]["message"]["content"]
        assert text == whole[: whole.index(sign)]


def _streamed(reply: httpx2.Response) -> str:
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize(
    ("given", "status", "param", "said"),
    [
        ({"temperature": 0.7}, 400, "temperature", "expected 0 (answers are greedy, as evaluated), got 0.7"),
        ({"n": 2}, 400, "n", "expected 1"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "expected 0"),
        ({"top_k": 5}, 400, "top_k", "not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "as evaluated"),
        ({"tools": TOOLS, "tool_choice": "required"}, 400, "tool_choice", "nothing forces a call"),
        ({"max_tokens": 0}, 400, "max_tokens", "1 or more"),
        ({"max_tokens": 100_000}, 400, "messages", "over the 512 that the model takes"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "at most 4"),
        ({"stream": "yes"}, 400, "stream", "true or false"),
        ({"messages": []}, 400, "messages", "a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0", "expected one of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0", "parts of type text"),
        ({"model": "nobody"}, 404, "model", "no 'nobody' here"),
    ],
)
def test_what_was_never_evaluated_is_refused_by_name(
    given: dict[str, Any], status: int, param: str, said: str, running: Running
) -> None:
    reply = running.ask(**given)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param) or param.startswith("messages.")
    assert reply.status_code == status
    assert said in error["message"]


def test_nobody_gets_in_without_the_key(running: Running) -> None:
    for path in ("/v1/models", "/metrics"):
        assert httpx2.get(f"{running.address}{path}").status_code == 401
    assert httpx2.post(f"{running.address}/v1/load_lora_adapter", json={}).status_code == 401


def test_too_many_are_told_to_come_back_and_the_depth_is_shown(running: Running) -> None:
    with ThreadPoolExecutor(QUEUE + 1) as pool:
        with running.models.lock:  # the model is kept busy
            first = pool.submit(running.ask)
            _until(lambda: running.engine.metrics.working == 1)
            others = [pool.submit(running.ask) for _ in range(QUEUE)]
            _until(lambda: running.engine.metrics.waiting == QUEUE)
            reply = running.ask()
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
            assert reply.headers["retry-after"] == "1"
            shown = httpx2.get(f"{running.address}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
            assert f"\ntunesmith_queue_depth {QUEUE}\n" in shown
        assert [one.result().status_code for one in (first, *others)] == [200] * (QUEUE + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_lets_the_next_one_in(stream: bool, running: Running) -> None:
    """Hundreds of tokens for nobody would hold everybody up."""
    metrics = running.engine.metrics
    spent, left = metrics._tokens["answer"], metrics._by_status[499]
    given: Any = {"model": "served/1", "messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 480}
    caller = openai.OpenAI(base_url=f"{running.address}/v1", api_key=KEY, max_retries=0, timeout=0.4)
    with running.models.lock:  # the model is kept busy until they have left
        if stream:
            found = caller.chat.completions.create(**given, stream=True)
            next(iter(found))
            found.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                caller.chat.completions.create(**given)
        time.sleep(1.5)  # the server looks every half second
    _until(lambda: metrics._by_status[499] == left + 1)
    assert metrics.working == 0
    assert metrics._tokens["answer"] == spent


def test_another_version_on_the_same_base_answers_as_itself(running: Running, released: Released) -> None:
    """While the first goes on answering, and again once the other is gone."""

    def answers(name: str) -> list[str]:
        rows = [row for row in released.answers[released.first.uri] if not row["tools"]]
        replies = [running.post(model=name, messages=row["messages"]) for row in rows]
        return [reply.json()["choices"][0]["message"]["content"] for reply in replies]

    def recorded(uri: str) -> list[str]:
        return [row["answer"] for row in released.answers[uri] if not row["tools"]]

    assert running.post("/v1/load_lora_adapter", **running.placed[1].as_json()).status_code == 200
    assert running.post("/v1/load_lora_adapter", **running.placed[1].as_json()).status_code == 400
    assert answers("served/2") == recorded(released.other.uri)
    assert answers("served/1") == recorded(released.first.uri)
    assert running.post("/v1/unload_lora_adapter", lora_name="served/2").status_code == 200
    assert answers("served/1") == recorded(released.first.uri)
    assert running.post(model="served/2", messages=[{"role": "user", "content": "?"}]).status_code == 404
    assert running.post("/v1/unload_lora_adapter", lora_name="served/1").status_code == 400


def test_pieces_of_text_add_up_whatever_the_tokens_cut(running: Running) -> None:
    from pipelines.serving.generation import Pieces

    tokenizer = running.models.slots["served/1"].tokenizer
    text = "naïve 🚀🚀 - 漢字 and  two  spaces\n\n<|im_end|>é"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer)
    found = [pieces.add(token) for token in tokens]
    assert "".join(found) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert len([piece for piece in found if piece]) > 5


def _until(there: Any) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_load_test_counts_answers_and_errors(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five at once where two may wait: every request is answered, or counted as one that was told to come back."""
    monkeypatch.setenv("TUNESMITH_LOAD_KEY", KEY)
    found = asyncio.run(load.measure(load.Load(f"{running.address}/v1", "served/1", 12, 5, 30.0)))
    assert found["requests"] == 12
    assert set(found["kinds"]) <= {"429"}
    answered = 12 - found["errors"]
    assert found["errors"] == found["kinds"].get("429", 0)
    assert answered > 0
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert found["requests_per_s"] == pytest.approx(answered / found["seconds"], rel=0.05)
    monkeypatch.setenv("TUNESMITH_LOAD_KEY", "wrong")
    assert asyncio.run(load.measure(load.Load(f"{running.address}/v1", "served/1", 2, 1, 30.0)))["kinds"] == {"401": 2}
