"""The evaluate and compare stages: who can be judged, on what, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines import product as products
from pipelines.dataset.rows import read_rows, write_rows
from pipelines.evaluation import record as table
from pipelines.evaluation.findings import load
from pipelines.tracking import registry
from tests.conftest import World
from tests.subjects import serving

SMALL = ["evaluate.robustness.rows=null", "evaluate.red_team.wraps=null", "evaluate.cost.rows=null"]


@pytest.fixture
def given(world: World, finished: World) -> list[str]:
    """Overrides that judge the finished world's adapter on its rows, in a world of the test's own."""
    return [
        f"evaluate.rows={finished.product('rows')}",
        f"evaluate.adapter={finished.product('adapter')}",
        "evaluate.subjects.champion.at=models:/nobody@champion",
    ]


def scores(world: World) -> products.Product:
    return products.load(world.product("scores"))


def answers(world: World, subject: str) -> list[str | None]:
    records, _ = table.read(world.product("scores") / "answers.parquet")
    return [record.answer for record in table.of(records, table.HELDOUT, subject)]


def test_metrics_are_those_of_the_table(finished: World) -> None:
    found = scores(finished)
    findings = load(finished.product("scores") / "answers.parquet")
    for subject, metrics in found.about["subjects"].items():
        assert findings.metrics(subject) == pytest.approx(metrics, abs=1e-12)
    accuracy = found.about["metrics"]["eval/correctness/accuracy"]
    assert found.about["metrics"]["eval/correctness/accuracy_low"] <= accuracy
    assert any(record.suite == "red_team" for record in findings.records)


def test_every_subject_has_a_run_of_its_own_and_the_candidate_the_stages(finished: World) -> None:
    mlflow.set_tracking_uri(finished.store)
    found = scores(finished)
    run = MlflowClient().get_run(found.run_id)
    assert run.data.tags["eval.subject"] == "adapter"
    query = f"tags.`mlflow.parentRunId` = '{found.run_id}'"
    (base,) = MlflowClient().search_runs([run.info.experiment_id], query)
    assert base.data.tags["eval.subject"] == "base"
    assert base.data.tags["eval.heldout"] == run.data.tags["eval.heldout"]
    accuracy = "eval/correctness/accuracy"
    assert base.data.metrics[accuracy] == found.about["subjects"]["base"][accuracy]
    assert not any("_vs_" in name for name in base.data.metrics)


def test_the_logged_model_has_the_metrics_with_the_data_set(finished: World) -> None:
    mlflow.set_tracking_uri(finished.store)
    found = scores(finished)
    version = registry.find(f"models:/{finished.folder.name}@candidate")
    model = mlflow.get_logged_model(str(registry.logged_model(version)))
    by_name = {metric.key: metric for metric in model.metrics}
    accuracy = by_name["eval/correctness/accuracy"]
    assert accuracy.value == found.about["metrics"]["eval/correctness/accuracy"]
    assert accuracy.dataset_name == "my_routing"
    assert accuracy.dataset_digest == found.about["heldout"]["digest"][:36]


def test_the_champion_is_judged_beside_the_adapter_and_takes_its_metrics(
    world: World, finished: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As it would be served: the same weights answer the same, and the difference is none."""
    mlflow.set_tracking_uri(finished.store)
    version = registry.find(f"models:/{finished.folder.name}@staging")
    registry.point(version.name, "champion", version.number)
    given[-1] = f"evaluate.subjects.champion.at=models:/{version.name}@champion"
    try:
        assert world.run("evaluate", *given, *SMALL) == 0
    finally:
        MlflowClient().delete_registered_model_alias(version.name, "champion")
    assert answers(world, "champion") == answers(world, "adapter")
    found = scores(world).about
    assert found["about"]["champion"]["version"] == version.uri
    assert found["about"]["champion"]["adapter digest"] == found["adapter_digest"]
    assert found["metrics"]["eval/correctness/accuracy_vs_champion"] == 0.0
    assert "champion: accuracy" in capsys.readouterr().out


def test_an_optional_subject_that_is_not_there_is_left_out_and_said(
    world: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("evaluate", *given, *SMALL) == 0
    assert "champion: models:/nobody@champion is not there, left out" in capsys.readouterr().out
    assert sorted(scores(world).about["subjects"]) == ["adapter", "base"]


def test_a_merged_model_answers_like_its_adapter(world: World, finished: World, given: list[str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(finished.model)
    merged = PeftModel.from_pretrained(base, str(finished.product("adapter"))).merge_and_unload()
    merged.save_pretrained(world.folder / "merged")
    AutoTokenizer.from_pretrained(finished.product("adapter")).save_pretrained(world.folder / "merged")
    subject = f"+evaluate.subjects.merged={{kind: model, at: {world.folder / 'merged'}}}"
    assert world.run("evaluate", *given, *SMALL, subject) == 0
    assert answers(world, "merged") == answers(world, "adapter")
    assert scores(world).about["about"]["merged"]["revision"].startswith("sha256:")


def test_without_an_adapter_the_base_alone_is_judged(world: World, finished: World) -> None:
    rows = f"evaluate.rows={finished.product('rows')}"
    only = ["~evaluate.subjects.adapter", "~evaluate.subjects.champion", "evaluate.candidate=base"]
    assert world.run("evaluate", rows, *only, *SMALL) == 0
    assert list(scores(world).about["subjects"]) == ["base"]
    assert "<html" in (world.product("scores") / "report.html").read_text(encoding="utf-8")


def endpoint(at: str, model: str) -> str:
    return f"+evaluate.subjects.api={{kind: endpoint, at: '{at}', model: '{model}', price_in: 1.0, price_out: 2.0}}"


def test_an_endpoint_is_judged_like_any_other_and_a_judge_out_of_form_is_counted(
    world: World, finished: World, given: list[str]
) -> None:
    """The same weights behind HTTP answer the same; as a judge they say nothing of the form that is asked."""
    with serving.serving(finished.model, serving.OWN, world.folder / "server.log") as server:
        judge = [f"evaluate.judge.at={server.at}", f"evaluate.judge.model={server.model}", "evaluate.judge.rows=36"]
        other = ["+evaluate.subjects.tiny={kind: model, at: data/models/tiny}", "evaluate.reference=tiny"]
        assert world.run("evaluate", *given, *SMALL, endpoint(server.at, server.model), *judge, *other) == 0
    assert answers(world, "api") == answers(world, "base")
    found = scores(world).about
    api = found["subjects"]["api"]
    assert api["eval/correctness/num_errors"] == 0
    assert 0 < api["eval/cost/dollars"] <= api["eval/cost/dollars_spent"]
    records, _ = table.read(world.product("scores") / "answers.parquet")
    tiny = {record.row_id: str(record.answer).strip() for record in table.of(records, table.HELDOUT, "tiny")}
    judged = table.of(records, "judge", "adapter")
    differing = sum(tiny[record.row_id] != str(record.answer).strip() for record in judged)
    # Equal answers are ties that nobody is asked about.
    assert found["metrics"]["eval/judge/num_judged_vs_tiny"] == len(judged) - differing
    assert found["metrics"]["eval/judge/num_out_of_form_vs_tiny"] == differing > 0
    assert "Reply with one letter alone" in (world.product("scores") / "report.html").read_text(encoding="utf-8")


def test_rows_that_an_endpoint_garbles_are_errors_and_in_no_rate(world: World, finished: World) -> None:
    rows = [replace(row, prompt=list(row.prompt)) for row in read_rows(finished.product("rows") / "heldout.jsonl")][:12]
    for row in rows[:4]:
        row.prompt[-1] = {"role": "user", "content": f"Where is my card? {row.id} <<raw:no json>>"}
    work = world.folder / "garbled.partial"
    work.mkdir()
    write_rows(work, "heldout", rows)
    made = products.publish(work, world.folder / "garbled", "rows", {"run_id": "x"}, {"digests": {}})
    only = ["~evaluate.subjects.adapter", "~evaluate.subjects.champion", "evaluate.candidate=api"]
    with serving.faulty() as server:
        subject = endpoint(server.at, "m").replace("kind:", "retries: 0, kind:")
        assert world.run("evaluate", f"evaluate.rows={made.folder}", *only, *SMALL, subject) == 0
    metrics = scores(world).about["metrics"]
    assert metrics["eval/correctness/num_errors"] == 4
    records, _ = table.read(world.product("scores") / "answers.parquet")
    asked = table.of(records, table.HELDOUT, "api")
    assert [record.error is None for record in asked] == [False] * 4 + [True] * 8
    assert all(record.correct is None and record.answer is None for record in asked[:4])
    right = [record.answer == record.expected for record in asked[4:] if record.in_scope]
    assert metrics["eval/correctness/accuracy"] == sum(right) / len(right)


def test_an_endpoint_that_is_not_there_is_told_before_a_model_is_loaded(
    world: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("evaluate", *given, *SMALL, endpoint("http://127.0.0.1:9/v1", "m")) == 4
    output = capsys.readouterr()
    assert "evaluate.subjects.api" in output.err
    assert "answers of" not in output.out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("+evaluate.subjects.x={kind: version, at: models:/nobody/7}", "evaluate.subjects.x.at: models:/nobody/7"),
        ("+evaluate.subjects.x={kind: version, at: nobody}", "expected models:/name/version or models:/name@alias"),
        ("+evaluate.subjects.x={kind: model, at: data/no/such}", "'data/no/such' is neither a folder nor a Hub id"),
        ("+evaluate.subjects.x={kind: adapter, at: data/banking77}", "data/banking77: no manifest.json"),
        ("evaluate.metrics=[tool_calls]", "evaluate.metrics: the held-out rows can't support tool_calls"),
        ("evaluate.metrics=[json_fields]", "evaluate.metrics: the held-out rows can't support json_fields"),
        ("evaluate.metrics=[pass_at_k]", "evaluate.pass_at.samples is null"),
        ("evaluate.slices.columns=[channel]", "evaluate.slices.columns"),
        ("evaluate.candidate=champion", "evaluate.candidate: champion is not there"),
    ],
)
def test_what_cannot_be_judged_is_told_by_name(
    world: World, given: list[str], override: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("evaluate", *given, *SMALL, override) == 2
    assert told in capsys.readouterr().err
    assert not list(world.folder.glob("outputs/scores/*/manifest.json"))


@pytest.mark.parametrize("stage", ["evaluate", "finetune"])
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task.card=null"], "task.card: the held-out rows of my_routing have no card"),
        (["task.card=no/such.yaml"], "no/such.yaml"),
        (["task.red_team=[no/such.jsonl]"], "task.red_team: no/such.jsonl: no such file"),
        (["evaluate.judge.at=http://127.0.0.1:9/v1", "evaluate.judge.prompt=hm"], "evaluate.judge.prompt: expected"),
        (
            ["+evaluate.subjects.x={kind: endpoint, at: 'http://h/v1', model: m, api_key: 'env:NO_SUCH_KEY'}"],
            "evaluate.subjects.x.api_key: the environment has no variable NO_SUCH_KEY",
        ),
    ],
)
def test_what_an_evaluation_lacks_is_told_before_anything_is_made(
    world: World, stage: str, overrides: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run(stage, *overrides) == 2
    assert told in capsys.readouterr().err
    assert not (world.folder / "rows").exists()


def test_without_card_is_said_in_the_report(world: World, given: list[str]) -> None:
    assert world.run("evaluate", *given, *SMALL, "task.card=null", "evaluate.without_card=true") == 0
    assert "no card" in (world.product("scores") / "report.html").read_text(encoding="utf-8").lower()


def test_heldout_rows_that_were_trained_on_are_refused(
    world: World, finished: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In the same product, and, where the rows come from elsewhere, by what the adapter says of its training."""
    own = finished.product("rows")
    heldout, train = read_rows(own / "heldout.jsonl"), read_rows(own / "train.jsonl")
    about = products.load(own).about
    for trained, whose in ((train, "the training rows of"), ([], "what the adapter of adapter was trained on")):
        work = world.folder / "leaky.partial"
        work.mkdir()
        write_rows(work, "heldout", [*heldout, train[0]])
        write_rows(work, "train", trained)
        made = products.publish(work, world.folder / "leaky", "rows", {"run_id": "x"}, about)
        assert world.run("evaluate", *given[1:], *SMALL, f"evaluate.rows={made.folder}") == 2
        error = capsys.readouterr().err
        assert f"heldout.jsonl shares 1 of {len(heldout) + 1} rows with {whose}" in error
        assert str(train[0].prompt[-1]["content"])[:60] in error


def test_compare_ranks_past_evaluations_of_the_same_rows(
    world: World, finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worse adapter joins the finished one; subjects that two runs judged count once."""
    assert finished.run("sft", "sft.trainer.max_steps=1", f"paths.adapters={world.folder}") == 0
    (other,) = world.folder.glob("my_routing-*/manifest.json")
    outputs = f"paths.outputs={world.folder / 'outputs'}"
    assert finished.run("evaluate", outputs, f"evaluate.adapter={other.parent}", *SMALL) == 0
    capsys.readouterr()
    assert finished.run("compare", outputs) == 0
    told = capsys.readouterr().out
    (board,) = world.folder.glob("outputs/leaderboard/*/leaderboard.json")
    found = json.loads(board.read_text(encoding="utf-8"))
    digests = {entry["about"].get("adapter digest") for entry in found["entries"]}
    assert {scores(finished).about["adapter_digest"], products.load(other.parent).digest} <= digests
    bases = [entry["about"]["model"] for entry in found["entries"] if entry["subject"] == "base"]
    assert bases == [str(finished.model)]
    metric = [entry["metrics"]["eval/correctness/accuracy"] for entry in found["entries"]]
    assert metric == sorted(metric, reverse=True)
    assert all("eval/correctness/accuracy_p" in entry["against_leader"] for entry in found["entries"][1:])
    assert "against the leader" in told
    assert found["heldout"] == products.load(finished.product("rows")).about["digests"]["heldout"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("compare.rows=0123456789ab", "compare.rows: no run of evaluate on held-out rows 0123456789ab"),
        ("compare.runs=[nobody]", "compare.runs: nobody"),
        ("compare.metric=eval/correctness/acuracy", "nearest valid name: eval/correctness/accuracy"),
    ],
)
def test_compare_tells_what_it_cannot_find(
    finished: World, world: World, override: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished.run("compare", f"paths.outputs={world.folder}", override) == 2
    assert told in capsys.readouterr().err


def test_rows_of_another_kind_are_refused(world: World, finished: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("evaluate", f"evaluate.rows={finished.product('adapter')}") == 2
    assert "evaluate.rows: expected a folder of kind rows" in capsys.readouterr().err


def test_a_harness_task_is_in_the_same_run(world: World, given: list[str]) -> None:
    only = ["~evaluate.subjects.base", "evaluate.reference=adapter", "evaluate.max_rows=3"]
    harness = ["eval.harness.tasks=[gsm8k]", "eval.harness.limit=4", "eval.harness.num_fewshot=0"]
    assert world.run("evaluate", *given, *SMALL, *only, *harness) == 0
    metrics = scores(world).about["metrics"]
    assert metrics["eval/gsm8k/exact_match_strict-match"] == 0.0
    records, _ = table.read(world.product("scores") / "answers.parquet")
    assert len(table.of(records, "gsm8k", "adapter")) == 4


def test_the_stage_says_what_it_is_doing(finished: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert finished.run("evaluate", f"paths.outputs={tmp_path}", "evaluate.max_rows=8", *SMALL) == 0
    output = capfd.readouterr()
    assert "adapter: accuracy" in output.out
    assert output.err == ""
