"""The chain of a real version, from the files that it was read from to the aliases that it holds."""

from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.product import file_hash
from pipelines.tracking import provenance, registry
from pipelines.tracking.registry import Version
from tests.conftest import World
from tests.releasing import release

NAME = "chain"


@pytest.fixture(scope="module")
def chain(finished: World, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """A version with a parent, a copy that is champion, two moves on record, and scores whose run is gone."""
    folder = tmp_path_factory.mktemp("chain")
    mlflow.set_tracking_uri(finished.store)
    parent = {"digest": registry.find(f"models:/{finished.folder.name}/1", "model").tags["adapter.digest"]}
    lineage = {"adapter": {"stage": "grpo", "parent": parent}, "scores": {"run": "0" * 32}}
    version = release(finished, folder / "one", lineage=lineage, name=NAME)
    copy = release(finished, folder / "two", name=f"prod.{NAME}")
    registry.tag(copy, {provenance.COPY_OF: version.uri})
    registry.point(NAME, "staging", version.number)
    registry.point(copy.name, "champion", copy.number)
    client = MlflowClient()
    client.create_registered_model(f"{NAME}.moves")
    for tags in (
        {"from": "", "to": version.number, "kind": "promote", "by": "ada"},
        {"from": version.number, "to": "", "kind": "rollback", "by": "grace", "reason": "a bad day"},
    ):
        told = {"alias": "staging", "at": "2026-11-26T16:00:00+00:00", "run": "", "digest": version.digest, **tags}
        client.create_model_version(f"{NAME}.moves", version.uri, tags=told)
    return version


def test_tree_goes_from_sources_to_aliases(
    finished: World, chain: Version, small_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished.run("lineage", f"model={chain.uri}") == 0
    shown = capsys.readouterr().out
    sha = file_hash(small_rows / "train.csv")[:12]
    digest = chain.tags["adapter.digest"][:12]
    for expected in (
        f"{chain.uri}  registered 20",
        f"├─ adapter {digest}  by grpo, seed 42, run {chain.tags['adapter.run'][:8]}\n",
        f"│  ├─ base {finished.model}",
        f"│  ├─ parent adapter {digest}  by sft, run ",
        f"│     └─ train  train, {small_rows / 'train.csv'}, LicenseRef-own, sha256 {sha}",
        "run 00000000 (gone)",
        "├─ gate staging  promoted to staging",
        "│  ├─ pass  accuracy: eval/correctness/accuracy",
        f"├─ copy  models:/prod.{NAME}/1, registered 20",
        f"└─ aliases now  staging, models:/prod.{NAME}/1: champion",
        f"moves of {NAME}\n  1  2026-11-26T16:00:00+00:00  staging: nobody -> 1, promote by ada\n",
        "  2  2026-11-26T16:00:00+00:00  staging: 1 -> nobody, rollback by grace (a bad day)\n",
        f"moves of prod.{NAME}: none on record",
    ):
        assert expected in shown
    folder = finished.folder / "outputs" / "lineage" / f"{NAME}-1"
    assert (folder / "lineage.txt").read_text(encoding="utf-8").strip() in shown
    assert 10_000 < (folder / "lineage.png").stat().st_size < 200_000
    query = f"tags.stage = 'lineage' and tags.version = '{chain.uri}'"
    experiments = [one.experiment_id for one in MlflowClient().search_experiments()]
    run = MlflowClient().search_runs(experiments, query)[0]
    assert {one.path for one in MlflowClient().list_artifacts(run.info.run_id)} == {"lineage.txt", "lineage.png"}


def test_name_alone_lists_versions_and_moves(
    finished: World, chain: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished.run("lineage", f"model={NAME}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{NAME}: 1 version"
    assert lines[1].startswith("  1  20")
    assert lines[1].endswith("promoted to staging, @staging")
    assert lines[2:4] == [
        f"moves of {NAME}",
        "  1  2026-11-26T16:00:00+00:00  staging: nobody -> 1, promote by ada",
    ]


def test_without_a_model_it_is_the_version_of_this_configuration(
    finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished.run("lineage") == 0
    assert f"models:/{finished.folder.name}/1" in capsys.readouterr().out


def test_what_is_not_there_is_told(finished: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert finished.run("lineage", "model=nobody") == 2
    assert "lineage.model: no registered model nobody" in capsys.readouterr().err
    assert finished.run("lineage", "model=models:/nobody/1") == 2
    assert "lineage.model: models:/nobody/1" in capsys.readouterr().err
