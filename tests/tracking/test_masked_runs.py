"""What a run keeps has no secrets: in the store, in the spool beside the product, in its last words."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.compute.launch import RankFailed
from pipelines.config.schema import Tracking
from pipelines.secret_kinds import MASK
from pipelines.tracking.kept import Kept
from pipelines.tracking.run import started
from pipelines.tracking.store import open_store

TOKEN = "hf_" + "aB3dE6gH9j" * 3 + "kL0m"
URL = "postgresql://me:s3cretWord@db/rows"


@pytest.fixture(autouse=True)
def _opened(store: str) -> None:
    open_store(Tracking(uri=store, experiment="tunesmith", system_metrics=False, patience_s=0))


def test_what_is_logged_and_the_last_words_are_masked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = Kept(tmp_path / "adapter", patience_s=60)

    def fail() -> None:
        with started(f"sft {TOKEN}", {"place": URL}, kept) as run:
            run.params({"url": URL, "hub_token": "abc123def", "rows": 3})
            run.metrics({f"loss {TOKEN}": 1.0}, 1)
            run.input("rows", Path("/rows") / TOKEN, "d" * 64, "train")
            raise RuntimeError(f"can't log in with {TOKEN} at {URL}")

    with pytest.raises(RuntimeError):
        fail()
    run = MlflowClient().get_run(str(kept.run_id()))
    told = [str(run.to_dictionary())] + [path.read_text() for path in kept.folder.rglob("*.jsonl")]
    assert len(told) == 2
    for text in told:
        assert TOKEN not in text
        assert "s3cretWord" not in text
        assert "d" * 36 in text
    assert run.data.params == {"cfg.url": f"postgresql://me:{MASK}@db/rows", "cfg.hub_token": MASK, "cfg.rows": "3"}
    assert run.data.tags["error"] == f"RuntimeError: can't log in with {MASK} at postgresql://me:{MASK}@db/rows"
    assert run.info.run_name == f"sft {MASK}"


def test_what_mlflow_run_recorded_before_is_masked_or_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient()
    given = client.create_run(client.get_experiment_by_name("tunesmith").experiment_id).info.run_id
    client.set_tag(given, "mlflow.source.git.repoURL", "https://me:s3cretWord@git.example.com/us.git")
    client.log_param(given, "overrides", f"model.id={TOKEN}")
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with started("sft", {}):
        pass
    assert client.get_run(given).data.tags["mlflow.source.git.repoURL"] == f"https://me:{MASK}@git.example.com/us.git"
    told = capsys.readouterr().out
    assert f"run {given}: `mlflow run` has recorded a secret in its parameter overrides" in told
    assert TOKEN not in told


def test_what_a_rank_ended_with_is_masked(tmp_path: Path) -> None:
    failed = RankFailed(1, f"Refused: {TOKEN}", f"Traceback\n  connect('{URL}')", tmp_path)
    assert failed.error == f"Refused: {MASK}"
    assert TOKEN not in str(failed)
    assert "s3cretWord" not in str(failed)
