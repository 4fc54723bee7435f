"""Base models are pinned by content or commit, and pickled or partial ones refused."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipelines.config.compose import compose
from pipelines.config.schema import Config, Model
from pipelines.errors import Unreachable, UserError
from pipelines.policy.base import load_base, pin, source

COMMIT = "1" * 40


@pytest.fixture
def config() -> Config:
    return compose([]).config


def named(config: Config, name: str, revision: str | None = None) -> Model:
    return config.model.model_copy(update={"id": str(name), "revision": revision})


def test_a_folder_is_pinned_by_its_content(config: Config, small_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_model, copy)
    first = pin(named(config, str(small_model))).revision
    assert first == pin(named(config, str(copy))).revision
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"rope_theta": 1.0}))
    assert first != pin(named(config, str(copy))).revision


def test_pickled_weights_are_refused(config: Config, small_model: Path, tmp_path: Path) -> None:
    shutil.copy(small_model / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is pickled, which runs code when loaded, and is refused"):
        pin(named(config, str(tmp_path)))


@pytest.mark.parametrize("name", ["./nowhere", "data/models/tny", "just-a-word", "a/b/c"])
def test_a_path_to_nothing_is_no_hub_id(config: Config, name: str) -> None:
    with pytest.raises(UserError, match="neither a folder nor a Hub id"):
        pin(named(config, name))


def test_files_that_leave_a_weight_unset_are_refused(config: Config, small_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_model, copy)
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 weights, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(named(config, str(copy)), config.adapter, config.compute)


def test_a_checkpoint_of_another_class_is_refused(config: Config, small_model: Path) -> None:
    model = named(config, str(small_model)).model_copy(update={"architecture": "LlamaForCausalLM"})
    with pytest.raises(UserError, match=r"expected LlamaForCausalLM, .* says Qwen3ForCausalLM"):
        load_base(model, config.adapter, config.compute)
    unknown = model.model_copy(update={"architecture": "Qwen3ForCausalM"})
    with pytest.raises(UserError, match="nearest valid name: Qwen3ForCausalLM"):
        load_base(unknown, config.adapter, config.compute)


class _Hub(BaseHTTPRequestHandler):
    """The part of the Hub's API that answers which commit a revision is."""

    def do_GET(self) -> None:
        known = {"/api/models/team/model/revision/main": COMMIT, "/api/models/team/model/revision/v2": "2" * 40}
        sha = known.get(self.path.partition("?")[0])
        self.send_response(200 if sha else 404)
        if not sha:
            self.send_header("X-Error-Code", "RevisionNotFound" if "/team/model/" in self.path else "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"id": "team/model", "modelId": "team/model", "sha": sha}).encode())

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A Hub on loopback; the client library reads its address when it is imported."""
    import huggingface_hub.constants
    import huggingface_hub.hf_api

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(("revision", "commit"), [("main", COMMIT), ("v2", "2" * 40), ("3" * 40, "3" * 40)])
def test_a_hub_revision_is_resolved_to_its_commit(
    config: Config, hub: ThreadingHTTPServer, revision: str, commit: str
) -> None:
    pinned = pin(named(config, "team/model", revision))
    assert pinned.revision == commit
    assert source(pinned) == {
        "pretrained_model_name_or_path": "team/model",
        "revision": commit,
        "trust_remote_code": False,
    }


def test_what_the_hub_does_not_have_is_named(config: Config, hub: ThreadingHTTPServer) -> None:
    with pytest.raises(UserError, match=r"model\.revision: team/model has no revision 'v9'"):
        pin(named(config, "team/model", "v9"))
    with pytest.raises(UserError, match=r"model\.id: the Hub has no model 'team/nothing'"):
        pin(named(config, "team/nothing", "main"))


def test_a_hub_that_is_away_is_said_so(config: Config, hub: ThreadingHTTPServer) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(Unreachable, match="can't ask the Hub for team/model"):
        pin(named(config, "team/model", "main"))
