"""The flow, end to end: runs, products, registered version, reuse."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines import product as products
from pipelines.evaluation import record as table
from tests.conftest import World

STAGES = ["prepare", "sft", "evaluate", "package", "promote"]
PICKLED = (".pkl", ".pickle", ".bin", ".pt", ".pth")


def flows(world: World) -> list[mlflow.entities.Run]:
    """The flow runs of a world, oldest first."""
    mlflow.set_tracking_uri(world.store)
    client = MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(experiments, "tags.stage = 'finetune'", order_by=["attributes.start_time"])
    digest = json.loads((world.product("adapter") / "manifest.json").read_text())["digest"]
    return [run for run in found if run.data.tags.get("product.sft") == digest]


def children(run: mlflow.entities.Run) -> dict[str, mlflow.entities.Run]:
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return {r.data.tags["stage"]: r for r in MlflowClient().search_runs([run.info.experiment_id], query)}


def test_flow_is_one_run_with_a_child_for_each_stage(finished: World) -> None:
    flow = flows(finished)[0]
    stages = children(flow)
    assert sorted(stages) == sorted(STAGES)
    assert {run.info.status for run in [flow, *stages.values()]} == {"FINISHED"}
    accuracy = "eval/correctness/accuracy"
    assert flow.data.metrics[accuracy] == stages["evaluate"].data.metrics[accuracy]


def test_runs_carry_configuration_code_and_inputs(finished: World) -> None:
    stages = children(flows(finished)[0])
    sft = stages["sft"]
    assert sft.data.params["cfg.sft.trainer.max_steps"] == "6"
    assert {"git.commit", "git.dirty", "lock.digest", "code.digest", "version.trl"} <= set(sft.data.tags)
    contexts = [{tag.key: tag.value for tag in given.tags} for given in sft.inputs.dataset_inputs]
    assert {tags["mlflow.data.context"] for tags in contexts} == {"train", "validation"}
    assert all(len(tags["sha256"]) == 64 for tags in contexts)
    artifacts = {a.path for a in MlflowClient().list_artifacts(sft.info.run_id)}
    assert {"config.yaml", "audit", "sft", "manifest.json"} <= artifacts
    assert len(MlflowClient().get_metric_history(sft.info.run_id, "sft/loss")) == 6


def test_evaluation_logs_report_pictures_and_answers(finished: World) -> None:
    run = children(flows(finished)[0])["evaluate"]
    files = {a.path: a.file_size for a in MlflowClient().list_artifacts(run.info.run_id, "evaluation")}
    assert files["evaluation/report.html"] > 10_000
    assert files["evaluation/answers.parquet"] > 5_000
    assert files["evaluation/accuracy_bars.png"] > 5_000
    table = mlflow.load_table("evaluation/answers.json", run_ids=[run.info.run_id])
    assert len(table) == 36
    assert run.data.metrics["eval/correctness/accuracy"] == pytest.approx(
        table[table.expected != "age_limit"].adapter_correct.mean()
    )


def test_staging_alias_points_to_a_version_with_its_lineage(finished: World) -> None:
    mlflow.set_tracking_uri(finished.store)
    version = MlflowClient().get_model_version_by_alias(finished.folder.name, "staging")
    adapter = products.load(finished.product("adapter"))
    assert version.tags["adapter.digest"] == adapter.digest
    assert version.tags["base.revision"] == adapter.about["base"]["revision"]
    assert version.tags["rows.digest"] == products.load(finished.product("rows")).digest
    assert {"git.commit", "git.dirty", "lock.digest", "config.digest", "seed", "base.license"} <= set(version.tags)
    scores = products.load(finished.product("scores")).about
    assert version.tags["heldout.digest"] == scores["heldout"]["digest"]
    assert version.tags["reference"] == "base"
    of_base = scores["subjects"]["base"]["eval/correctness/accuracy"]
    assert version.tags["correctness.accuracy_of_reference"] == f"{of_base:.4f}"
    assert version.tags["gate.result"] == "promoted to staging"
    assert version.tags["gate.accuracy"].startswith("pass  accuracy: eval/correctness/accuracy = ")


def test_registered_model_answers_as_it_was_evaluated_without_pickle(
    finished: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(finished.store)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(f"models:/{finished.folder.name}@staging")
    records, _ = table.read(finished.product("scores") / "answers.parquet")
    for record in table.of(records, table.HELDOUT, "adapter")[:12]:
        reply = model.predict({"messages": json.loads(record.prompt)})
        assert reply["choices"][0]["message"] == {"role": "assistant", "content": record.answer}
        assert reply["usage"]["total_tokens"] > reply["usage"]["prompt_tokens"] > 0
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{finished.folder.name}@staging"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in PICKLED]
    assert json.loads((folder / "input_example.json").read_text())["messages"][0]["role"] == "user"


def test_registered_model_refuses_a_temperature_and_a_changed_base(
    finished: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(finished.store)
    uri = f"models:/{finished.folder.name}@staging"
    message = [{"role": "user", "content": "Where is my card?"}]
    with pytest.raises(mlflow.exceptions.MlflowException, match="temperature: expected 0"):
        mlflow.pyfunc.load_model(uri).predict({"messages": message, "temperature": 0.7})
    other = tmp_path / "base"
    shutil.copytree(finished.model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    monkeypatch.setenv("TUNESMITH_BASE_MODEL", str(other))
    with pytest.raises(Exception, match=r"config\.json isn't the file that was trained on: expected sha256"):
        mlflow.pyfunc.load_model(uri)


def test_second_flow_reuses_every_stage_and_says_so(finished: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = products.load(finished.product("adapter"))
    assert finished.run("finetune") == 0
    output = capsys.readouterr().out
    assert output.count(": reused from run ") == len(STAGES)
    assert f"sft: reused from run {before.run_id}" in output
    versions = MlflowClient().search_model_versions(f"name = '{finished.folder.name}'")
    # What package made, and what promote copied.
    assert len([one for one in versions if one.tags["adapter.digest"] == before.digest]) >= 2
    assert sorted(one.version for one in versions if one.run_id) == [1]


def test_a_changed_setting_makes_only_what_depends_on_it(finished: World, tmp_path: Path) -> None:
    copy = World(finished.folder, finished.store, finished.model, finished.rows)
    assert copy.run("evaluate", "evaluate.max_rows=10", f"paths.outputs={tmp_path}") == 0
    (manifest,) = tmp_path.glob("scores/*/manifest.json")
    assert products.load(manifest.parent).about["adapter_digest"] == products.load(copy.product("adapter")).digest


def test_another_adapter_becomes_the_next_version_and_takes_the_alias(world: World) -> None:
    for steps, number in ((2, 1), (3, 3)):
        assert world.run("finetune", f"sft.trainer.max_steps={steps}") == 0
        mlflow.set_tracking_uri(world.store)
        made = MlflowClient().get_model_version_by_alias(world.folder.name, "candidate")
        staged = MlflowClient().get_model_version_by_alias(world.folder.name, "staging")
        assert (int(made.version), int(staged.version)) == (number, number + 1)
        assert staged.tags["release.copy_of"] == f"models:/{world.folder.name}/{number}"
        for version in (made, staged):
            assert MlflowClient().get_model_version(version.name, version.version).tags["gate.result"] == (
                "promoted to staging"
            )
    assert int(MlflowClient().get_model_version_by_alias(world.folder.name, "staging-previous").version) == 2


def test_same_inputs_give_the_same_digests(finished: World, world: World) -> None:
    """Run again from nothing, elsewhere: rows, adapter and scores come out byte for byte the same."""
    assert world.run("finetune", "reuse=false") == 0
    for kind in ("rows", "adapter", "scores"):
        assert products.load(world.product(kind)).digest == products.load(finished.product(kind)).digest


def test_a_damaged_product_is_made_anew(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("prepare") == 0
    rows = world.product("rows") / "train.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-10])
    assert world.run("prepare") == 0
    assert "prepare: made anew, because" in capsys.readouterr().out
    assert rows.read_bytes() == whole


def test_a_stage_alone_names_the_one_to_run_first(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("sft") == 2
    assert "has no rows yet; run `python -m pipelines prepare`" in capsys.readouterr().err


def test_stages_run_one_by_one_as_in_the_flow(finished: World, world: World) -> None:
    rows, adapter = finished.product("rows"), finished.product("adapter")
    assert world.run("evaluate", f"evaluate.rows={rows}", f"evaluate.adapter={adapter}") == 0
    assert products.load(world.product("scores")).digest == products.load(finished.product("scores")).digest


def test_prepare_alone_asks_for_no_model(world: World) -> None:
    assert world.run("prepare", "model.id=team/on-no-hub-that-answers") == 0


def test_sweep_is_one_run_with_a_child_for_each_job(world: World) -> None:
    assert world.run("prepare", "--multirun", "prepare.validation_share=0.1,0.3") == 0
    mlflow.set_tracking_uri(world.store)
    experiment = MlflowClient().get_experiment_by_name("tunesmith").experiment_id
    (sweep,) = MlflowClient().search_runs([experiment], "tags.stage = 'sweep'")
    query = f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'"
    jobs = MlflowClient().search_runs([experiment], query)
    assert len(jobs) == 2
    assert {run.info.status for run in [sweep, *jobs]} == {"FINISHED"}
    assert len(list((world.folder / "rows").glob("*/manifest.json"))) == 2
