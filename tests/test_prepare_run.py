"""`prepare` through the launcher: the run that it leaves, what is reused, sources that MLflow or a database keep."""

import csv
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.dataset.rows import read_rows
from pipelines.product import load
from tests.conftest import World


def latest(world: World) -> Any:
    mlflow.set_tracking_uri(world.store)
    experiment = MlflowClient().get_experiment_by_name("tunesmith").experiment_id
    return MlflowClient().search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)[0]


def test_the_run_says_what_was_read_and_what_became_of_it(world: World) -> None:
    assert world.run("prepare") == 0
    run, product = latest(world), load(world.product("rows"))
    assert run.info.status == "FINISHED"
    assert {(i.dataset.name, i.tags[0].value) for i in run.inputs.dataset_inputs} >= {("train", "train")}
    digests = {tag.value for i in run.inputs.dataset_inputs for tag in i.tags if tag.key == "sha256"}
    summary = json.loads(product.file("summary.json").read_text())
    assert {source["sha256"] for source in summary["sources"].values()} == digests
    metrics = run.data.metrics
    assert metrics["rows/train"] == product.about["num_rows"]["train"]
    assert "contamination/heldout/13gram" in metrics
    assert metrics["prepare/exact_duplicates"] == summary["duplicates"]["exact"]
    stored = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    assert {"summary.json", "report.html", "manifest.json", "config.yaml"} <= stored
    assert product.about["licenses"] == ["LicenseRef-own"]


def test_a_picture_is_no_part_of_the_digest(world: World) -> None:
    assert world.run("prepare") == 0
    folder = world.product("rows")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "report.html" in manifest["files"]
    before = load(folder).digest
    (folder / "report.html").write_text("another font")
    manifest["files"]["report.html"] = hashlib.sha256(b"another font").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert load(folder).digest == before


def test_defects_open_no_run(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("prepare") == 0
    before = latest(world).info.run_id
    (tmp_path / "bad.csv").write_text("query,label\nonly one\n")
    assert world.run("prepare", f"task.sources.train.path={tmp_path}/bad.csv") == 2
    assert "bad.csv:2: 1 field, the header has 2" in capsys.readouterr().err
    assert latest(world).info.run_id == before
    assert len(list((world.folder / "rows").iterdir())) == 1


def test_unchanged_files_are_reused_and_a_database_is_read_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = sqlite3.connect(tmp_path / "data.db")
    database.execute("create table asked (query text, label text)")
    with (world.rows / "train.csv").open(encoding="utf-8", newline="") as stream:
        rows = [(record["query"], record["label"]) for record in csv.DictReader(stream)]
    database.executemany("insert into asked values (?, ?)", rows)
    database.commit()
    query = "task.sources.train.sql='select query, label from asked order by rowid'"
    given = [query, f"task.sources.train.url=sqlite:///{tmp_path}/data.db", "task.sources.train.path=null"]
    assert world.run("prepare", *given) == 0
    assert world.run("prepare", *given) == 0
    assert "reused" not in capsys.readouterr().out
    first = load(world.product("rows")).digest
    database.execute("insert into asked values ('a question of its own that is new', 'age_limit')")
    database.commit()
    assert world.run("prepare", *given) == 0
    assert load(world.product("rows")).digest != first
    pinned = json.loads((world.product("rows") / "summary.json").read_text())["sources"]["train"]["sha256"]
    assert world.run("prepare", *given, f"task.sources.train.sha256={pinned}") == 0
    assert world.run("prepare", *given, f"task.sources.train.sha256={'0' * 64}") == 2
    assert "it has changed" in capsys.readouterr().err


def test_files_are_reused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("prepare") == 0
    assert world.run("prepare") == 0
    assert "prepare: reused from run" in capsys.readouterr().out


def test_traces_of_a_model_become_rows(world: World) -> None:
    mlflow.set_tracking_uri(world.store)
    experiment = mlflow.set_experiment(f"served-{world.folder.name}")
    for number in range(30):
        with mlflow.start_span("chat") as span:
            span.set_inputs({"messages": [{"role": "user", "content": f"request {number * 7919} of item {number}"}]})
            answer = {"role": "assistant", "content": f"answer {number}"}
            span.set_outputs({"choices": [{"index": 0, "message": answer}]})
    mlflow.flush_trace_async_logging()
    given = ["task.sources.train.path=null", f"task.sources.train.traces={experiment.name}", "task.verify=exact"]
    columns = ["task.sources.train.prompt=null", "task.sources.train.answer=null", "task.sources.train.time=time"]
    quiet = ["prepare.duplicates.near=off", "prepare.contamination.near=false", "task.decline_label=null"]
    assert world.run("prepare", *given, *columns, *quiet) == 0
    folder = world.product("rows")
    rows = [row for split in ("train", "validation") for row in read_rows(folder / f"{split}.jsonl")]
    assert {row.answer for row in rows} == {f"answer {number}" for number in range(30)}
    assert rows[0].source.startswith("traces:")


def test_another_runs_rows_by_its_id(world: World) -> None:
    assert world.run("prepare") == 0
    run = latest(world).info.run_id
    first = load(world.product("rows"))
    given = ["task.sources.train.path=null", f"task.sources.train.rows=run:{run}"]
    columns = ["task.sources.train.prompt=null", "task.sources.train.answer=null"]
    assert world.run("prepare", *given, *columns, f"paths.rows={world.folder}/again") == 0
    (again,) = (world.folder / "again").glob("*/manifest.json")
    assert load(again.parent).about["num_rows"]["train"] <= first.about["num_rows"]["train"]
    assert read_rows(again.parent / "train.jsonl")[0].source.startswith(str(first.folder))


def test_the_steps_of_fixed_rows_are_metrics_too(world: World) -> None:
    assert world.run("prepare") == 0
    fixed = world.product("rows")
    assert world.run("prepare", f"prepare.heldout.fixed={fixed}", f"paths.rows={world.folder}/again") == 0
    assert "prepare/of_held-out_sources_and_not_held_out_before" in latest(world).data.metrics
