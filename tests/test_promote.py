"""The stage: what is refused and what that leaves behind, what is copied, and what force can and can't do."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.release import seal
from pipelines.tracking import moves, registry
from pipelines.tracking.copying import PAST, Registry
from pipelines.tracking.registry import Version
from tests.conftest import World


class Model:
    """The registered model of the world where the whole flow ran; each test has aliases of its own."""

    def __init__(self, world: World) -> None:
        mlflow.set_tracking_uri(world.store)
        self.world, self.name, self.client = world, world.folder.name, MlflowClient()

    @property
    def candidate(self) -> str:
        return f"models:/{self.name}/{self.holder('candidate')}"

    def holder(self, alias: str) -> str | None:
        return registry.holder(self.name, alias)

    def version(self, alias: str) -> Version:
        return registry.find(f"models:/{self.name}@{alias}")

    def promote(self, alias: str, *overrides: str, model: str | None = None) -> int:
        return self.world.run("promote", f"model={model or self.candidate}", f"to={alias}", *overrides)

    def decision(self, version: Version) -> dict:
        run = self.client.get_run(version.tags["gate.run"])
        assert run.info.status == "FINISHED"
        return dict(json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/decision.json")))


@pytest.fixture
def model(finished: World) -> Model:
    return Model(finished)


def changed(model: Model, folder: Path, tags: dict[str, str], name: str | None = None) -> str:
    """A version with other files than the candidate's, sealed and registered as package would; returns its URI."""
    seal.write(folder)
    source = registry.find(model.candidate)
    experiment = model.client.get_experiment_by_name("tunesmith")
    logged = model.client.create_logged_model(experiment.experiment_id, "changed", model_type="adapter")
    model.client.log_model_artifacts(logged.model_id, str(folder))
    model.client.finalize_logged_model(logged.model_id, "READY")
    digest = seal.write(folder)
    kept = {key: value for key, value in source.tags.items() if not key.startswith("gate.")}
    made = model.client.create_model_version(
        name or model.name, f"models:/{logged.model_id}", tags=kept | tags | {seal.DIGEST_TAG: digest}
    )
    return f"models:/{made.name}/{made.version}"


def test_promotion_copies_the_bytes_into_the_targets_own_model(model: Model) -> None:
    source, staged = registry.find(model.candidate), model.version("staging")
    assert staged.number != source.number
    assert staged.tags["release.copy_of"] == source.uri
    assert staged.digest == source.digest
    assert {name: staged.tags[name] for name in ("adapter.digest", "base.revision", "seed")} == {
        name: source.tags[name] for name in ("adapter.digest", "base.revision", "seed")
    }
    logged = model.client.get_logged_model(str(registry.logged_model(staged)))
    assert logged.source_run_id is None
    assert model.client.get_experiment(logged.experiment_id).name == f"{model.name}.releases"
    # Whoever edits the source, or deletes it, doesn't reach what is staged.
    there = Path(registry.files(staged))
    assert there != Path(registry.files(source))


def test_refusal_exits_3_leaves_the_alias_and_is_on_record(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    uri = model.candidate
    assert model.promote("refused", "gate.rules.accuracy.value=1.1") == 3
    assert f"{uri} is not promoted to refused: gate staging fails accuracy" in capsys.readouterr().err
    assert model.holder("refused") is None
    version = registry.find(uri)
    assert version.tags["gate.result"] == "refused for refused"
    assert version.tags["gate.accuracy"].startswith("FAIL  accuracy: eval/correctness/accuracy = ")
    decision = model.decision(version)
    assert [rule["name"] for rule in decision["rules"] if not rule["passed"]] == ["accuracy"]
    assert (decision["model"], decision["target"]) == (uri, f"models:/{model.name}@refused")
    assert decision["result"] == "refused for refused"
    assert decision["by"]
    assert model.promote("staging") == 0  # and the version is what it was
    assert registry.find(uri).tags["gate.result"] == "promoted to staging"


@pytest.mark.parametrize("uri", ["models:/nothing/1", "models:/nothing@staging", "models:/nothing"])
def test_a_model_that_is_not_there_is_named(uri: str, finished: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert finished.run("promote", f"model={uri}") == 2
    assert "promote.model: " in capsys.readouterr().err


def test_a_staged_copy_goes_on_without_being_copied_again(model: Model) -> None:
    number = model.holder("staging")
    assert model.promote("first", model=f"models:/{model.name}@staging") == 0
    assert model.promote("second") == 0  # the version that package made: its copy is there
    assert model.holder("first") == model.holder("second") == number


def test_force_needs_a_reason_and_is_recorded(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    never = "gate.rules.accuracy.value=1.1"
    assert model.promote("forced", never, "force=true") == 2
    assert "force needs reason" in capsys.readouterr().err
    assert model.promote("forced", never, "force=true", 'reason="a fix for tonight"') == 0
    version = model.version("forced")
    assert version.tags["gate.result"] == "forced to forced"
    assert version.tags["gate.forced"] == "a fix for tonight"
    assert version.tags["gate.by"]
    assert version.tags["gate.at"]
    decision = model.decision(version)
    assert (decision["forced"], decision["passed"]) == ("a fix for tonight", False)
    (move,) = [one for one in moves.history(model.name) if one.alias == "forced"]
    assert (move.kind, move.reason, move.from_, move.to) == ("forced", "a fix for tonight", None, version.number)
    assert (move.by, move.digest, move.valid, move.done) == (version.tags["gate.by"], version.digest, True, True)


@pytest.mark.parametrize(
    "file", ["artifacts/*/adapter_model.safetensors", "code/pipelines/errors.py", "MLmodel", "seal.json"]
)
def test_a_byte_that_changed_is_refused_whatever_force_says(
    model: Model, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = registry.find(model.candidate)
    (path,) = registry.files(source).glob(file)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert model.promote("tampered", "force=true", "reason=none") == 3
    finally:
        path.write_bytes(whole)
    assert "fails integrity" in capsys.readouterr().err
    assert model.holder("tampered") is None
    assert path.name in registry.find(model.candidate).tags["gate.integrity"]


@pytest.mark.parametrize(
    ("file", "content"),
    [("artifacts/extra.pkl", b"x"), ("artifacts/notes.txt", b"\x80\x04K\x01."), ("code/run.so", b"\x7fELF")],
)
def test_pickles_and_unknown_files_are_refused(
    model: Model, tmp_path: Path, file: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Registry().download(registry.find(model.candidate), tmp_path / "files")
    (folder / file).write_bytes(content)
    uri = changed(model, folder, {})
    assert model.promote("pickled", "force=true", "reason=none", model=uri) == 3
    assert "fails integrity" in capsys.readouterr().err
    assert file in registry.find(uri).tags["gate.integrity"]
    assert model.holder("pickled") is None


def test_what_was_evaluated_must_be_the_versions_own_files(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter of the version is another one than its scores are of: only a seal of its own makes it whole."""
    folder = Registry().download(registry.find(model.candidate), tmp_path / "files")
    (manifest,) = folder.glob("artifacts/*/manifest.json")
    told = json.loads(manifest.read_text())
    told["files"].pop("training.json")
    (manifest.parent / "training.json").unlink()
    from pipelines.product import _content_digest

    manifest.write_text(json.dumps(told | {"digest": _content_digest(told["files"])}))
    uri = changed(model, folder, {})
    assert model.promote("others", model=uri) == 3
    assert "fails own_files" in capsys.readouterr().err
    assert "other adapter" in registry.find(uri).tags["gate.own_files"]


def test_a_version_without_scores_is_not_evaluated(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Registry().download(registry.find(model.candidate), tmp_path / "files")
    (folder / "artifacts/scores.json").unlink()
    assert model.promote("unjudged", model=changed(model, folder, {})) == 3
    assert "fails evaluated, accuracy" in capsys.readouterr().err
    assert model.holder("unjudged") is None


def test_a_teacher_whose_licence_is_not_allowed_keeps_a_version_back(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Registry().download(registry.find(model.candidate), tmp_path / "files")
    uri = changed(model, folder, {"teachers.licenses": "MIT, no-derivatives"})
    assert model.promote("taught", model=uri) == 3
    assert "fails license_teachers" in capsys.readouterr().err
    assert "no-derivatives" in registry.find(uri).tags["gate.license_teachers"]
    assert model.holder("taught") is None
    assert model.promote("taught", "gate.licenses.teachers=[MIT,no-derivatives]", model=uri) == 0


def test_a_later_decision_leaves_no_ruling_of_an_earlier_policy(model: Model) -> None:
    assert model.promote("staging", "+gate.rules.more={metric: m, bound: above, value: 1.0, reason: why}") == 3
    assert "gate.more" in registry.find(model.candidate).tags
    assert model.promote("staging") == 0
    assert registry.find(model.candidate).tags["gate.more"] == PAST


def test_an_expected_holder_that_is_another_is_told(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    number = int(str(model.holder("staging")))
    assert model.promote("expected", f"expect={number}") == 3
    assert "fails race" in capsys.readouterr().err
    assert model.holder("expected") is None
    assert model.promote("expected", "expect=0") == 0
    assert model.promote("expected", "expect=0", "force=true", "reason=none") == 3  # force doesn't win a race
    assert model.promote("expected", f"expect={number}") == 0


def test_a_copy_whose_bytes_were_changed_is_not_used_again(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    staged = model.version("staging")
    path = registry.files(staged) / "artifacts/scores.json"
    whole = path.read_bytes()
    path.write_bytes(whole + b" ")
    try:
        assert model.promote("anew") == 0
        made = model.version("anew")
        assert made.number != staged.number
        assert registry.logged_model(made) != registry.logged_model(staged)
        assert registry.files(made)
    finally:
        path.write_bytes(whole)
    assert "it is not used again" in capsys.readouterr().out


def test_the_incumbent_is_compared_with_on_the_same_rows(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verdicts from the evaluation's run where the version has none of its own: a version equal to the incumbent."""
    assert model.promote("incumbent") == 0
    folder = Registry().download(registry.find(model.candidate), tmp_path / "files")
    (folder / "artifacts/more.txt").write_text("other bytes")
    asked = "gate.compare.as_good_as_incumbent={against: incumbent, metric: correctness/accuracy, ask: superior, "
    asked += "margin: 0.0, reason: ties stay where they are}"
    uri = changed(model, folder, {})
    before = model.holder("incumbent")
    assert model.promote("incumbent", asked, model=uri) == 3
    assert "fails as_good_as_incumbent" in capsys.readouterr().err
    told = registry.find(uri).tags["gate.as_good_as_incumbent"]
    assert f"against models:/{model.name}/{before}, lower end = -" in told
    other = changed(model, shutil.copytree(folder, tmp_path / "again"), {"heldout.digest": "another"})
    assert model.promote("incumbent", model=other) == 3
    assert "other held-out rows" in registry.find(other).tags["gate.as_good_as_incumbent"]
    assert model.holder("incumbent") == before
    assert Registry().client.get_model_version_by_alias(model.name, "incumbent").version == int(str(before))
