"""The stage: what it refuses, and that a refusal registers nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file

from pipelines import product as products
from pipelines.errors import UserError
from pipelines.policy.served import load_served
from pipelines.product import Product
from pipelines.tracking import registry
from tests.conftest import World

MakeAdapter = Callable[..., Product]


def packaged(finished: World, name: str, outputs: Path, *overrides: str) -> int:
    adapter, scores = finished.product("adapter"), finished.product("scores")
    given = [f"package.adapter={adapter}", f"package.scores={scores}", f"paths.outputs={outputs}"]
    return finished.run("package", *given, f"package.registered_model={name}", *overrides)


def test_a_form_that_differs_is_refused_where_it_is_required(
    finished: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = ["package.parity.tolerance.float32=0.0", "package.parity.endpoint=false"]
    assert packaged(finished, "required", tmp_path, *strict, "package.parity.require=[merged]") == 3
    told = capsys.readouterr().err
    assert "package.parity: not registered: merged (in the weights of the base): 8 of 8 answers are equal" in told
    mlflow.set_tracking_uri(finished.store)
    with pytest.raises(MlflowException, match="not found"):
        MlflowClient().get_registered_model("required")


def test_a_form_that_differs_is_recorded_elsewhere(finished: World, tmp_path: Path) -> None:
    strict = ["package.parity.tolerance.float32=0.0", "package.parity.endpoint=false", "package.parity.prompts=2"]
    assert packaged(finished, "recorded", tmp_path, *strict) == 0
    mlflow.set_tracking_uri(finished.store)
    version = registry.find("models:/recorded@candidate", "promote.model")
    assert version.tags["parity.passed"] == "false"
    parity = json.loads((registry.files(version) / "artifacts/release/parity.json").read_text())
    assert {name: form["passed"] for name, form in parity["forms"].items()} == {
        "reloaded": True,
        "merged": False,
        "pyfunc": True,
    }


def test_other_scores_are_refused(
    finished: World, adapter: MakeAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nudged(folder: Path) -> None:
        weights = load_file(folder / "adapter_model.safetensors")
        save_file({name: tensor * 1.5 for name, tensor in weights.items()}, folder / "adapter_model.safetensors")

    made = adapter(nudged)
    assert packaged(finished, "others", tmp_path / "outputs", f"package.adapter={made.folder}") == 2
    assert "judges another adapter than" in capsys.readouterr().err


def test_an_adapter_that_its_scores_judge_and_that_is_none_is_refused(
    finished: World, adapter: MakeAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores are by digest: whoever evaluates an untrained adapter has scores for it."""

    def untrained(folder: Path) -> None:
        weights = load_file(folder / "adapter_model.safetensors")
        begun = {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in weights.items()}
        save_file(begun, folder / "adapter_model.safetensors")

    made = adapter(untrained)
    source = products.load(finished.product("scores"))
    work = tmp_path / "scores.partial"
    work.mkdir()
    for name in ("answers.parquet", "scores.json"):
        (work / name).write_bytes(source.file(name).read_bytes())
    about = source.about | {"adapter_digest": made.digest}
    scores = products.publish(work, tmp_path / "scores", "scores", source.made_by, about)
    given = [f"package.adapter={made.folder}", f"package.scores={scores.folder}"]
    assert packaged(finished, "untrained", tmp_path / "outputs", *given) == 2
    assert "equals its initial values: it changes nothing of the base" in capsys.readouterr().err
    mlflow.set_tracking_uri(finished.store)
    with pytest.raises(MlflowException, match="not found"):
        MlflowClient().get_registered_model("untrained")


@pytest.mark.parametrize(
    ("part", "file"), [("tokenizer", "tokenizer_config.json"), ("template", "chat_template.jinja")]
)
def test_a_whole_adapter_in_another_s_place_is_refused_by_name(
    part: str, file: str, finished: World, adapter: MakeAdapter
) -> None:
    """Its manifest is sound: what the version says of it isn't."""

    def spoil(folder: Path) -> None:
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace("<|im_start|>", "<|im_end|>", 1) if part == "template" else text + "\n")

    mlflow.set_tracking_uri(finished.store)
    version = registry.find(f"models:/{finished.folder.name}/1", "promote.model")
    _, settings = registry.contents(version)
    with pytest.raises(UserError, match=f"its {part} isn't the one of {finished.folder.name}"):
        load_served(settings, adapter(spoil).folder)
