"""Going back: to whoever held the alias before, its bytes checked, and again further back."""

import json
from pathlib import Path

import mlflow
import pytest

from pipelines.tracking import moves, registry
from pipelines.tracking.copying import Registry
from tests.conftest import World
from tests.test_promote import Model, changed

ALIAS = "live"


@pytest.fixture(scope="module")
def model(finished: World, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Three versions that held one alias, one after the other."""
    made = Model(finished)
    assert made.promote(ALIAS) == 0
    for text in ("second", "third"):
        folder = Registry().download(registry.find(made.candidate), tmp_path_factory.mktemp(text) / "files")
        (folder / "artifacts/note.txt").write_text(text)
        assert made.promote(ALIAS, model=changed(made, folder, {})) == 0
    return made


def back(model: Model, *overrides: str) -> int:
    return model.world.run("rollback", f"alias={ALIAS}", *overrides)


def test_rollback_goes_back_and_back_and_then_says_that_there_is_nothing(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    held = moves.held_before(moves.history(model.name), ALIAS)
    assert len(set(held)) == 3
    first, second, third = held
    # The one before was tampered with: nothing moves.
    path = registry.files(registry.find(f"models:/{model.name}/{second}")) / "artifacts/note.txt"
    path.write_text("secomd")
    assert back(model) == 3
    assert "fails integrity" in capsys.readouterr().err
    assert model.holder(ALIAS) == third
    path.write_text("second")

    assert back(model, "reason=slow") == 0
    assert f"models:/{model.name}/{second} is {model.name}@{ALIAS} again, after {third}" in capsys.readouterr().out
    assert (model.holder(ALIAS), model.holder(f"{ALIAS}-previous")) == (second, first)
    last = moves.history(model.name)[-1]
    assert (last.kind, last.from_, last.to, last.reason) == ("rollback", third, second, "slow")
    run = model.client.get_run(last.run)
    assert (run.info.status, run.data.tags["stage"]) == ("FINISHED", "rollback")
    decision = json.loads(mlflow.artifacts.load_text(f"runs:/{last.run}/decision.json"))
    assert (decision["incumbent"], decision["model"]) == (third, f"models:/{model.name}/{second}")

    assert back(model) == 0
    assert (model.holder(ALIAS), model.holder(f"{ALIAS}-previous")) == (first, None)
    assert back(model) == 2
    assert f"nobody held models:/{model.name}@{ALIAS} before" in capsys.readouterr().err
    assert model.holder(ALIAS) == first

    # What was gone back from can be promoted again, and a holder of long ago be asked for by number.
    assert model.promote(ALIAS, model=f"models:/{model.name}/{third}") == 0
    assert model.holder(f"{ALIAS}-previous") == first
    assert back(model, "to=999") == 2
    assert "rollback.to: expected a version that held" in capsys.readouterr().err
    assert back(model, f"to={first}") == 0
    assert model.holder(ALIAS) == first


def test_an_alias_that_nobody_held_is_told(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert model.world.run("rollback", "alias=nowhere") == 2
    assert "rollback.alias: nobody held" in capsys.readouterr().err
