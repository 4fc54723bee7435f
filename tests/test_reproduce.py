"""A version made again from its own files: bit for bit, or refused with what differs named."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.errors import Refused, UserError
from pipelines.given import looked_up
from pipelines.product import load
from pipelines.rebuild import order, with_last
from pipelines.release import ancestry
from pipelines.tracking import registry
from pipelines.tracking.registry import Version
from tests.conftest import World
from tests.releasing import release

CREATED = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}


@pytest.fixture(scope="module")
def released(finished: World, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return release(finished, tmp_path_factory.mktemp("released") / "model")


def report(version: Version) -> dict[str, object]:
    """What the newest attempt on a version wrote."""
    runs = MlflowClient().search_runs(
        [one.experiment_id for one in MlflowClient().search_experiments()],
        f"tags.stage = 'reproduce' and tags.version = '{version.uri}'",
    )
    found: dict[str, object] = mlflow.artifacts.load_dict(f"runs:/{runs[0].info.run_id}/reproduction.json")
    return {**found, "run": runs[0]}


def test_a_version_comes_out_bit_for_bit(
    finished: World, released: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished.run("reproduce", f"model={released.uri}") == 0
    shown = capsys.readouterr().out
    assert f"reproduce: {released.uri} is reproduced: identical, 8 files of the adapter bit for bit" in shown
    assert "evaluate: started" not in shown
    tags = registry.find(released.uri, "model").tags
    assert tags["reproduced.result"] == "identical"
    found = report(released)
    assert found["result"] == "identical"
    run = MlflowClient().get_run(tags["reproduced.run"])
    below = MlflowClient().search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert {child.data.tags["stage"] for child in below} == {"prepare", "sft"}
    trained = next(child for child in below if child.data.tags["stage"] == "sft")
    assert trained.data.tags["product.digest"] == released.tags["adapter.digest"]
    assert trained.info.run_id != released.tags["adapter.run"]
    assert not list((finished.folder / "outputs" / "reproduction").glob("*"))


def test_adapters_of_two_processes_are_the_same(finished: World) -> None:
    """peft keeps names in sets, whose order is another in every process."""
    settings = json.loads((finished.product("adapter") / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["target_modules"] == sorted(settings["target_modules"])


def test_a_changed_source_is_named_and_may_be_allowed(
    finished: World, small_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "train.csv"
    lines = (small_rows / "train.csv").read_text(encoding="utf-8").splitlines()
    changed.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    version = release(finished, tmp_path / "model", {"task": {"sources": {"train": {"path": str(changed)}}}})
    assert finished.run("reproduce", f"model={version.uri}") == 3
    told = capsys.readouterr()
    assert "can't come out the same: sources: train (" in told.err
    assert "heldout" not in told.err
    assert "sft: started" not in told.out
    assert "reproduced.result" not in registry.find(version.uri, "model").tags
    assert report(version)["result"] == "not tried"

    assert finished.run("reproduce", f"model={version.uri}", "allow=[sources]") == 0
    shown = capsys.readouterr().out
    assert "DIFFERS  rows: " in shown
    assert "(sources train)" in shown
    assert "DIFFERS  adapter_model.safetensors" in shown
    assert registry.find(version.uri, "model").tags["reproduced.result"] == "within the interval"
    scores = report(version)["scores"]
    assert isinstance(scores, dict)
    assert (scores["rows"], scores["within"]) == (36, True)


def test_another_seed_gives_other_rows_and_is_refused(
    finished: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = release(finished, tmp_path / "model", {"seed": 7})
    assert finished.run("reproduce", f"model={version.uri}") == 3
    told = capsys.readouterr()
    assert f"{version.uri} differs: its rows (its sources are the same, what was made of them isn't)" in told.err
    assert "sft: started" not in told.out
    assert registry.find(version.uri, "model").tags["reproduced.result"] == "differs"
    run = report(version)["run"]
    assert isinstance(run, mlflow.entities.Run)
    assert run.info.status == "FINISHED"
    assert "differs" in run.data.tags["refused"]


def test_another_training_is_refused_where_bits_are_asked(
    finished: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = release(finished, tmp_path / "model", {"sft": {"trainer": {"max_steps": 2}}})
    assert finished.run("reproduce", f"model={version.uri}", "exact=true") == 3
    told = capsys.readouterr()
    assert "differs: adapter_model.safetensors, training.json differ, and reproduce.exact=true" in told.err
    (kept,) = (finished.folder / "outputs" / "reproduction").glob(f"{version.name}-{version.number}-*")
    assert list(kept.glob("adapters/*/adapter_model.safetensors"))
    shutil.rmtree(kept)


@pytest.mark.parametrize(
    ("lineage", "named"),
    [
        ({"lock": "0" * 64}, "lock: requirements.lock: 000000000000 then, "),
        ({"versions": {"peft": "0.1"}}, "libraries: peft: 0.1 then, 0.21"),
        ({"code": "0" * 64, "git": {"commit": "f" * 40, "dirty": False}}, "code: commit ffff"),
        ({"code": "0" * 64, "git": {"commit": "f" * 40, "dirty": True}}, "code: made with changes on top of commit ff"),
        ({"base": {"revision": "sha256:00", "files": {"config.json": "00"}}}, "base: "),
    ],
)
def test_what_is_not_as_it_was_is_told_before_anything_runs(
    lineage: dict[str, object], named: str, finished: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = release(finished, tmp_path / "model", lineage=lineage)
    assert finished.run("reproduce", f"model={version.uri}") == 3
    told = capsys.readouterr()
    assert f"{version.uri} can't come out the same: {named}" in told.err
    assert f"(reproduce.allow=[{named.partition(':')[0]}] goes on all the same)" in told.err
    assert "prepare: started" not in told.out


def test_a_version_that_was_changed_is_not_made_again(
    finished: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = release(finished, tmp_path / "model")
    file = registry.files(version) / "artifacts" / "release" / "config.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("seed: 42", "seed: 43", 1), encoding="utf-8")
    assert finished.run("reproduce", f"model={version.uri}") == 2
    assert "artifacts/release/config.yaml was changed" in capsys.readouterr().err
    MlflowClient().delete_model_version(version.name, version.number)


def test_a_version_without_papers_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"models:/x/1: expected artifacts/release/config\.yaml and .*lineage\.json in it"
    ):
        ancestry.read(tmp_path, "models:/x/1")


ORDERS = [
    ([], "sft", ["prepare", "sft"]),
    (["experiment=reinforce"], "grpo", ["prepare", "sft", "grpo"]),
    ([], "grpo", ["prepare", "sft", "grpo"]),  # it was run by itself, behind the flow
    (["experiment=reinforce"], "sft", ["prepare", "sft"]),
    (["experiment=reinforce", "grpo.start=base"], "grpo", ["prepare", "grpo"]),
    (["experiment=distill"], "distill", ["prepare", "sft", "distill"]),
    (["experiment=distill_generated", "distillation=sequence"], "distill", ["prepare", "generate", "distill"]),
]


@pytest.mark.parametrize(("overrides", "last", "expected"), ORDERS)
def test_only_what_the_adapter_needs_is_run(overrides: list[str], last: str, expected: list[str]) -> None:
    config = with_last(compose(overrides).config, last)
    assert order(config, last) == expected
    assert order(config, "evaluate") == [*expected, "evaluate"]


def test_an_adapter_that_was_named_is_looked_up_by_its_content(
    finished: World, released: Version, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(finished.store)
    digest = released.tags["adapter.digest"]
    gone = f"grpo.adapter={tmp_path / 'gone'}"
    config = with_last(compose([*finished.overrides(), gone]).config, "grpo")
    made = ancestry.read(registry.files(released), released.uri)
    parent = {"stage": "grpo", "digest": "f" * 64, "run": "", "parent": {"digest": digest}}
    found, notes = looked_up(config, replace(made, adapter=parent), ["prepare", "grpo"])
    assert load(Path(str(found.grpo.adapter))).digest == digest
    assert "is taken from models:/" in notes[0]
    unknown = {**parent, "parent": {"digest": "0" * 64}}
    with pytest.raises(Refused, match=r"grpo\.adapter: .*gone isn't there, and no registered version holds"):
        looked_up(config, replace(made, adapter=unknown), ["prepare", "grpo"])


def test_a_teacher_is_the_version_of_then(finished: World, released: Version) -> None:
    """Its alias may have moved since, and the version itself may be gone, but not its adapter."""
    mlflow.set_tracking_uri(finished.store)
    given = ["experiment=distill", f"teacher.at=models:/{released.name}@candidate"]
    config = compose([*finished.overrides(), *given]).config
    made = ancestry.read(registry.files(released), released.uri)
    teacher = {
        "kind": "version",
        "version": released.uri,
        "digest": released.tags["model.digest"],
        "adapter": released.tags["adapter.digest"],
    }
    found, notes = looked_up(config, replace(made, teachers=[teacher]), ["prepare", "distill"])
    assert found.teacher.at == released.uri
    assert "@candidate" in notes[0]
    gone = {**teacher, "version": "models:/nobody/1"}
    found, _ = looked_up(config, replace(made, teachers=[gone]), ["prepare", "distill"])
    assert registry.find(str(found.teacher.at), "model").tags["adapter.digest"] == teacher["adapter"]
    with pytest.raises(Refused, match="models:/nobody/1 isn't in this registry any more"):
        looked_up(config, replace(made, teachers=[{**gone, "adapter": "0" * 64}]), ["prepare", "distill"])


@pytest.mark.slow
@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="needs the project's repository")
def test_another_commit_runs_in_a_tree_of_its_own(
    finished: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    who = {f"GIT_{role}_{what}": "tests@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    commit = subprocess.run(
        ["git", "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "the same files"],
        cwd=PROJECT,
        env={**os.environ, **who, **CREATED},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    lineage = {"code": "0" * 64, "git": {"commit": commit, "dirty": False}}
    version = release(finished, tmp_path / "model", lineage=lineage)
    assert finished.run("reproduce", f"model={version.uri}", "keep=true", "judge=always") == 0, capfd.readouterr()
    shown = capfd.readouterr().out
    assert f"code: commit {commit[:12]}, in a working tree of its own" in shown
    assert "is reproduced: identical, 8 files bit for bit and 36 verdicts" in shown
    (kept,) = (finished.folder / "outputs" / "reproduction").glob(f"{version.name}-{version.number}-*")
    (manifest,) = kept.glob("adapters/*/manifest.json")
    run = MlflowClient().get_run(load(manifest.parent).run_id)
    assert (run.info.status, run.data.tags["git.commit"]) == ("FINISHED", commit)
    assert run.data.tags["mlflow.parentRunId"] == registry.find(version.uri, "model").tags["reproduced.run"]
    trees = subprocess.run(["git", "worktree", "list"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert commit[:7] not in trees
