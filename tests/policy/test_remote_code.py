"""Code that a checkpoint brings runs only where the profile names its revision."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines.config.compose import compose
from pipelines.config.schema import Config, Model
from pipelines.errors import UserError
from pipelines.policy import base
from tests.conftest import World

CONFIGURATION = """
from pathlib import Path
from transformers import Qwen3Config
Path({ran!r}).write_text("ran")
class OwnConfig(Qwen3Config):
    model_type = "own_of_a_test"
"""
MODELING = """
from transformers import Qwen3ForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def checkpoint(small_model: Path, tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small model as one that brings its own classes, which leave a file when they are imported."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own_model"
    shutil.copytree(small_model, folder)
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(ran=str(ran)))
    (folder / "modeling_own.py").write_text(MODELING)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {
        "model_type": "own_of_a_test",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def config() -> Config:
    return compose([]).config


def profile(config: Config, folder: Path, revision: str | None = None) -> Model:
    named = {"revision": revision, "reason": "read by us"} if revision else None
    given = config.model.model_dump() | {"id": str(folder), "revision": None, "remote_code": named}
    return Model.model_validate(given | {"architecture": "OwnForCausalLM"})


def of_code(folder: Path) -> str:
    return base.LOCAL + base.content_hash(folder, code=True)


def test_code_that_no_profile_names_is_refused_and_never_runs(config: Config, checkpoint: Path, ran: Path) -> None:
    model = base.pin(profile(config, checkpoint))
    with pytest.raises(UserError, match="needs code of its own, which is not run; read it, then name its revision"):
        base.load_base(model, config.adapter, config.compute)
    with pytest.raises(UserError, match="needs code of its own"):
        base.elsewhere(config.model, str(checkpoint), None)
    assert not ran.exists()


def test_code_that_the_profile_names_runs_at_the_revision_that_was_read(
    config: Config, checkpoint: Path, ran: Path
) -> None:
    model = base.pin(profile(config, checkpoint, of_code(checkpoint)))
    loaded = base.load_base(model, config.adapter, config.compute)
    assert type(loaded).__name__ == "OwnForCausalLM"
    assert ran.read_text() == "ran"


def test_changed_code_is_refused_before_it_runs(config: Config, checkpoint: Path, ran: Path) -> None:
    read = of_code(checkpoint)
    with (checkpoint / "modeling_own.py").open("a") as stream:
        stream.write("# changed\n")
    with pytest.raises(UserError, match=rf"model\.remote_code\.revision: {read} was read, but .* is at sha256:"):
        base.pin(profile(config, checkpoint, read))
    assert not ran.exists()


def test_code_from_another_repository_is_refused(config: Config, checkpoint: Path) -> None:
    settings = json.loads((checkpoint / "config.json").read_text())
    settings["auto_map"]["AutoConfig"] = "somebody/else--configuration_own.OwnConfig"
    (checkpoint / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"config\.json takes code from somebody/else, whose revision nothing pins"):
        base.pin(profile(config, checkpoint, of_code(checkpoint)))


def test_the_code_of_one_model_says_nothing_of_another(config: Config, checkpoint: Path, small_model: Path) -> None:
    named = profile(config, checkpoint, of_code(checkpoint))
    assert base.elsewhere(named, str(small_model), None).remote_code is None


def test_code_is_part_of_the_revision_only_where_it_runs(small_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small_model, folder)
    plain, with_code = base.content_hash(folder), base.content_hash(folder, code=True)
    (folder / "extra.py").write_text("x = 1\n")
    assert base.content_hash(folder) == plain
    assert base.content_hash(folder, code=True) != with_code


def test_the_launcher_says_so_in_one_line(world: World, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("prepare") == 0
    assert world.run("sft", f"model.id={checkpoint}", "model.architecture=OwnForCausalLM") == 2
    assert "needs code of its own, which is not run" in capsys.readouterr().err
