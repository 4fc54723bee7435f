"""`serve` as a process: held to what versions recorded, following its alias, ended with all that it started."""

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx2
import mlflow
import openai
import psutil
import pytest
from mlflow.tracking import MlflowClient
from openai.types.chat import ChatCompletionChunk

from pipelines import apart
from pipelines.tracking import registry
from tests.serving.conftest import QUESTIONS, Released, Serving, serving


def test_an_alias_is_followed_and_no_request_lost(released: Released, tmp_path: Path) -> None:
    """One server: with a key, two names, a swap under load, versions that are not taken, and SIGTERM at the end."""
    mlflow.set_tracking_uri(released.store)
    client = MlflowClient()
    registry.point(released.name, "live", released.first.number)
    given = ["model=models:/served@live", "poll_s=0.3", "api_key=env:SERVE_TEST_KEY"]
    given.append(f"+serve.adapters.fixed={released.first.uri}")
    with serving(tmp_path / "log", released, *given) as up:
        assert httpx2.get(f"{up.address}/v1/models").status_code == 401
        assert httpx2.post(f"{up.address}/v1/load_lora_adapter", json={}).status_code == 404
        users = openai.OpenAI(base_url=f"{up.address}/v1", api_key="the-key-of-users", max_retries=0)
        assert sorted(model.id for model in users.models.list()) == ["fixed", "served"]
        with pytest.raises(openai.NotFoundError):
            users.chat.completions.create(model="served/1", messages=[{"role": "user", "content": "?"}])
        asking = _Asking(users)
        registry.point(released.name, "live", released.other.number)
        up.until(lambda: f"{released.other.uri} answers as served now" in up.said)
        registry.point(released.name, "live", released.wrong.number)
        up.until(lambda: "which is not taken" in up.said)
        assert f"{released.wrong.uri} is not served: 1 of 6 recorded answers differ, first row row-2" in up.said
        assert f"{released.other.uri} goes on answering as served" in up.said
        tampered = _tampered(released, tmp_path)
        client.set_registered_model_alias(released.name, "live", tampered)
        up.until(lambda: f"models:/served/{tampered}, which is not taken" in up.said)
        assert "training.json was changed" in up.said
        asking.end()
        assert asking.answers("fixed") == {_recorded(released, released.first.uri)}
        assert asking.answers("served") == {
            _recorded(released, uri) for uri in (released.first.uri, released.other.uri)
        }
        after = users.chat.completions.create(model="served", messages=[{"role": "user", "content": QUESTIONS[0]}])
        assert after.choices[0].message.content == _recorded(released, released.other.uri)
        shown = httpx2.get(f"{up.address}/metrics").text
        assert 'tunesmith_serving{name="served",version="served/2"} 1' in shown
        assert "tunesmith_swaps_total 1" in shown
        (engine,) = psutil.Process(up.process.pid).children()
        assert up.stop(signal.SIGTERM) == 143
        assert not psutil.pid_exists(engine.pid)
    assert not list((tmp_path / "serving").iterdir())
    runs = client.search_runs([client.get_experiment_by_name("tunesmith").experiment_id], "tags.stage = 'serve'")
    assert {run.data.tags.get("serve.smoke") for run in runs} >= {"6 of 6 as recorded", "5 of 6 as recorded"}


class _Asking:
    """Users who ask without a pause, whatever happens behind the door."""

    def __init__(
        self, users: openai.OpenAI, names: Sequence[str] = ("fixed", "served"), limit: int | None = None
    ) -> None:
        self.users, self.limit, self.told = users, limit or openai.omit, list[tuple[str, str]]()
        self.errors: list[Exception] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in names]
        for thread in self._threads:
            thread.start()

    def _ask(self, name: str) -> None:
        while not self._over.is_set():
            try:
                stream: openai.Stream[ChatCompletionChunk] = self.users.chat.completions.create(
                    model=name,
                    messages=[{"role": "user", "content": QUESTIONS[0]}],
                    stream=True,
                    max_tokens=self.limit,
                )
                self.told.append((name, "".join(chunk.choices[0].delta.content or "" for chunk in stream)))
            except openai.OpenAIError as error:
                self.errors.append(error)
                return

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors
        assert len(self.told) > 10

    def answers(self, name: str) -> set[str]:
        return {text for asked, text in self.told if asked == name}


def _recorded(released: Released, uri: str) -> str:
    return str(released.answers[uri][0]["answer"])


def _tampered(released: Released, folder: Path) -> str:
    """A version whose files were changed after it was registered, by a byte."""
    files = registry.copied(released.first, folder / "tampered")
    run_id = mlflow.search_runs(search_all_experiments=True, output_format="list", max_results=1)[0].info.run_id
    model_id, digest = registry.log_model(run_id, released.name, files, {})
    version = registry.register(released.name, model_id, run_id, {"files.digest": digest})
    place = Path(mlflow.artifacts.download_artifacts(version.uri))
    adapter = registry.described(place, version.uri)[0]
    (adapter / "training.json").write_bytes((adapter / "training.json").read_bytes() + b" ")
    return version.number


def test_a_version_that_answers_otherwise_is_not_served(released: Released, tmp_path: Path) -> None:
    up = Serving(tmp_path / "log", released, f"model={released.wrong.uri}")
    assert up.ended() == 3, up.said
    assert f"{released.wrong.uri} is not served: 1 of 6 recorded answers differ" in up.said
    assert "first row row-2: recorded 'something else', the address answers '" in up.said
    started = next(line for line in up.said.splitlines() if "is starting (process" in line)
    assert not psutil.pid_exists(int(started.rpartition("process ")[2].rstrip(")")))


def test_what_cannot_be_served_is_said_before_anything_starts(
    released: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from pipelines import __main__ as launcher

    given = ["serve", f"tracking.uri={released.store}", f"paths.outputs={tmp_path}"]
    listener = socket.create_server(("127.0.0.1", 0))
    taken = listener.getsockname()[1]
    with listener:
        assert launcher.run([*given, f"model={released.first.uri}", f"port={taken}"]) == 2
        assert f"serve.port: can't listen on 127.0.0.1:{taken}" in capsys.readouterr().err
    mlflow.set_tracking_uri(released.store)
    client = MlflowClient()
    number = released.first.number
    client.set_model_version_tag(released.name, number, "serving.vllm", "false: DoRA, which vLLM can't load")
    try:
        assert launcher.run([*given, f"model={released.first.uri}", "engine=vllm"]) == 3
        assert "is not served by vLLM: DoRA, which vLLM can't load" in capsys.readouterr().err
    finally:
        client.set_model_version_tag(released.name, number, "serving.vllm", "true")
    monkeypatch.setattr("pipelines.apart.PROJECT", tmp_path)
    assert launcher.run([*given, f"model={released.first.uri}", "engine=vllm"]) == 2
    assert "run `make env-vllm` first" in capsys.readouterr().err
    assert launcher.run([*given, "model=models:/served@nobody"]) == 2
    assert "serve.model: models:/served@nobody" in capsys.readouterr().err
    assert launcher.run([*given, f"model={released.first.uri}", "api_key=env:NOT_SET"]) == 2
    assert "serve.api_key: the environment variable NOT_SET isn't set" in capsys.readouterr().err


@pytest.mark.slow
def test_mlflows_scoring_server_answers_as_recorded_and_ends_with_us(released: Released, tmp_path: Path) -> None:
    with serving(tmp_path / "log", released, f"model={released.first.uri}", "engine=mlflow") as up:
        assert "6 of 6 recorded answers are given again" in up.said
        row = released.answers[released.first.uri][0]
        reply = httpx2.post(f"{up.address}/invocations", json={"messages": row["messages"]}, timeout=60).json()
        assert reply["choices"][0]["message"]["content"] == row["answer"]
        below = psutil.Process(up.process.pid).children(recursive=True)
        assert up.stop(signal.SIGINT) == 130
        assert not [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_killed_it_leaves_no_engine_behind(released: Released, tmp_path: Path) -> None:
    with serving(tmp_path / "log", released, f"model={released.first.uri}") as up:
        (engine,) = psutil.Process(up.process.pid).children()
        os.kill(up.process.pid, signal.SIGKILL)
        up.process.wait()
        engine.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(
    not (apart.folder("vllm") / "bin" / "vllm").exists(), reason="no .venv-vllm here: `make env-vllm` makes it"
)
def test_vllm_answers_as_recorded_and_follows_the_alias(released: Released, tmp_path: Path) -> None:
    """On this machine's CPU, where there is no CUDA."""
    mlflow.set_tracking_uri(released.store)
    registry.point(released.name, "fast", released.first.number)
    given = [
        "model=models:/served@fast",
        "engine=vllm",
        "poll_s=0.5",
        "flags=[--enforce-eager,--gpu-memory-utilization,'0.2']",
    ]
    with serving(tmp_path / "log", released, *given) as up:
        assert f"{released.first.uri}: 6 of 6 recorded answers are given again" in up.said
        users = openai.OpenAI(base_url=f"{up.address}/v1", api_key="none", max_retries=0)
        asking = _Asking(users, names=("served",), limit=8)
        registry.point(released.name, "fast", released.other.number)
        up.until(lambda: f"{released.other.uri} answers as served now" in up.said)
        asking.end()
        both = {_recorded(released, uri) for uri in (released.first.uri, released.other.uri)}
        assert asking.answers("served") <= both
        after = users.chat.completions.create(
            model="served", messages=[{"role": "user", "content": QUESTIONS[0]}], max_tokens=8
        )
        assert after.choices[0].message.content == _recorded(released, released.other.uri)
        assert "vllm:num_requests_waiting" in httpx2.get(f"{up.address}/metrics").text
        below = psutil.Process(up.process.pid).children(recursive=True)
        assert up.stop(signal.SIGTERM) == 143
        assert not [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
