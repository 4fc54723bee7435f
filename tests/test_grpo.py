"""Reinforcement learning for real on a small model: what is learnt, kept, restarted, watched and refused."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from pipelines import product as products
from pipelines.config.paths import PROJECT
from pipelines.dataset.questions import FILE, fingerprints, read_questions
from pipelines.dataset.rows import read_rows
from tests.conftest import World

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    "grpo.trainer.max_steps=4",
    "grpo.trainer.num_generations=4",
    "grpo.trainer.per_device_train_batch_size=8",
    "grpo.trainer.gradient_accumulation_steps=1",
    "grpo.trainer.max_completion_length=12",
    "grpo.trainer.save_steps=2",
    "grpo.watch.window=2",
    "verifier.workers=1",
]
OWN = "task.verify=tests.own_verifier"
RECIPES = sorted((PROJECT / "conf/recipe").glob("*.yaml"))
SYNCHRONOUS = [path.stem for path in RECIPES if "asynchronous: true" not in path.read_text(encoding="utf-8")]


@pytest.fixture
def given(finished: World) -> list[str]:
    """The rows and the adapter of the flow that ran once."""
    return [f"grpo.rows={finished.product('rows')}", f"grpo.adapter={finished.product('adapter')}", *SMALL]


def last_run(world: World, stage: str = "grpo") -> mlflow.entities.Run:
    mlflow.set_tracking_uri(world.store)
    client = MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    found: mlflow.entities.Run = client.search_runs(experiments, f"tags.stage = '{stage}'", max_results=1)[0]
    return found


def rollouts(world: World) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(world.product("adapter") / "rollouts.parquet").to_pylist()
    return found


def weights(folder: Path) -> dict[str, object]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def test_an_adapter_trains_on_with_its_lineage_its_rollouts_and_its_curves(
    world: World, finished: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    base = products.folder_files(world.model)
    assert world.run("grpo", *given, "grpo.show.table_steps=2", "grpo.rewards.format.weight=0.1") == 0
    shown = capsys.readouterr().out
    assert [f"\nstep {step}: " in shown for step in (1, 2, 3, 4)] == [True, False, True, False]
    assert products.folder_files(world.model) == base
    made, parent = products.load(world.product("adapter")), products.load(finished.product("adapter"))
    assert made.about["parent"] == {"digest": parent.digest, "run_id": parent.run_id, "folder": str(parent.folder)}
    assert made.about["recipe"] == "dr_grpo"
    assert made.digest != parent.digest
    trained = read_rows(finished.product("rows") / "train.jsonl")
    assert read_questions(made.file(FILE)) == read_questions(parent.file(FILE)) | fingerprints(trained)
    found = rollouts(world)
    run = last_run(world)
    assert len(found) == 4 * 8
    assert {record["run_id"] for record in found} == {run.info.run_id} == {made.run_id}
    assert [record["step"] for record in found] == [step for step in (1, 2, 3, 4) for _ in range(8)]
    assert [record["group"] for record in found[:8]] == [0] * 4 + [1] * 4
    assert len({record["row_id"] for record in found[:4]}) == 1
    for record in found:
        parts = dict(record["parts"])  # type: ignore[call-overload]
        assert parts["correct"] == (record["completion"].strip() == record["expected"])  # type: ignore[attr-defined]
        assert record["reward"] == pytest.approx(parts["correct"] + 0.1 * parts["format"], abs=1e-5)
    logged = MlflowClient().get_metric_history(run.info.run_id, "grpo/reward")
    means = [sum(r["reward"] for r in found if r["step"] == step) / 8 for step in (1, 2, 3, 4)]  # type: ignore[misc]
    assert [metric.value for metric in sorted(logged, key=lambda m: m.step)] == pytest.approx(means)
    artifacts = {a.path: a.file_size for a in MlflowClient().list_artifacts(run.info.run_id, "grpo")}
    assert artifacts["grpo/rewards.png"] > 20_000
    assert artifacts["grpo/rollouts.parquet"] > 1_000
    assert run.data.metrics["grpo/alarm/kl"] == 0.0


def test_what_earns_reward_becomes_more_frequent(world: World, finished: World, given: list[str]) -> None:
    """From the shipped base, under a verifier of one's own: short answers are right, and answers get short."""
    shipped = ["model.id=data/models/tiny", "grpo.start=base", "grpo.trainer.max_steps=20", f"{OWN}:short"]
    faster = ["grpo.trainer.learning_rate=0.01", "grpo.trainer.per_device_train_batch_size=16"]
    assert world.run("grpo", *given, *shipped, *faster) == 0
    right = [record["outcome"] == "right" for record in rollouts(world)]
    assert sum(right[-80:]) / 80 > sum(right[:80]) / 80 + 0.3
    assert products.load(world.product("adapter")).about["parent"] is None


def test_rows_that_are_always_or_never_right_are_not_asked(
    world: World, finished: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    band = ["grpo.pass_rate.samples=4", "grpo.pass_rate.low=0.25", "grpo.pass_rate.high=0.5", f"{OWN}:even"]
    assert world.run("grpo", *given, *band) == 0
    rates = json.loads((world.product("adapter") / "pass_rates.json").read_text())
    rows = read_rows(finished.product("rows") / "train.jsonl")
    assert rates.keys() == {row.id for row in rows}
    assert {judged for _, judged in rates.values()} == {4}
    within = {row_id for row_id, (right, _) in rates.items() if right in (1, 2)}
    assert 0 < len(within) < len(rows)
    assert f"{len(within)} of them with a pass rate of 0.25 to 0.5" in capsys.readouterr().out
    assert {record["row_id"] for record in rollouts(world)} <= within
    assert world.run("grpo", *given, *band, "grpo.pass_rate.high=0.25", f"{OWN}:anything") == 2
    assert "grpo.pass_rate: no row is within low and high" in capsys.readouterr().err


def test_a_stopped_run_goes_on_to_the_same_adapter(world: World, given: list[str], tmp_path: Path) -> None:
    whole = World(tmp_path / "whole", world.store, world.model, world.rows)
    settings = [*given, "grpo.trainer.max_steps=8", "recipe=grpo", f"{OWN}:even"]
    assert whole.run("grpo", *settings) == 0

    def stop() -> None:
        while not list(world.folder.glob("adapters/*.partial/rollouts/00000003.parquet")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop)
    watcher.start()
    assert world.run("grpo", *settings) == 143
    watcher.join()
    assert last_run(world).info.status == "KILLED"
    (checkpoints,) = world.folder.glob("adapters/*.partial/checkpoints")
    assert 3 <= max(int(path.name.rpartition("-")[2]) for path in checkpoints.glob("checkpoint-*")) < 8
    assert world.run("grpo", *settings) == 0
    resumed, uninterrupted = weights(world.product("adapter")), weights(whole.product("adapter"))
    assert resumed.keys() == uninterrupted.keys()
    assert all(bool((resumed[name] == uninterrupted[name]).all()) for name in resumed)  # type: ignore[attr-defined]
    told = [[{**record, "run_id": ""} for record in rollouts(one)] for one in (world, whole)]
    assert told[0] == told[1]


def test_the_reference_is_the_adapter_before_and_is_not_handed_over(world: World, given: list[str]) -> None:
    assert world.run("grpo", *given, "recipe=grpo", f"{OWN}:even", "grpo.trainer.learning_rate=0.01") == 0
    folder = world.product("adapter")
    assert not (folder / "ref").exists()
    assert not [name for name in weights(folder) if "ref" in name]
    history = [entry for entry in json.loads((folder / "training.json").read_text()) if "kl" in entry]
    assert history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert history[-1]["kl"] > 1e-6


@pytest.mark.parametrize("recipe", SYNCHRONOUS)
def test_every_recipe_trains_a_quantised_base(world: World, given: list[str], recipe: str) -> None:
    several = ["grpo.trainer.max_steps=2", "grpo.trainer.num_iterations=2"]  # so that ratios differ from 1
    start = ["adapter=qlora", "adapter.peft.r=4", "grpo.start=base", f"{OWN}:short"]
    overrides = [o for o in world.overrides() if not o.startswith("adapter.")]
    world.overrides = lambda: overrides  # type: ignore[method-assign]
    assert world.run("grpo", *given, *start, *several, f"recipe={recipe}") == 0
    assert products.load(world.product("adapter")).about["quantized"] is True


def test_an_audit_that_falls_behind_stops_the_run_with_its_rollouts(
    world: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    audit = ["task.audit=tests.own_verifier:changes_its_mind", "grpo.watch.audit_share=1.0"]
    assert world.run("grpo", *given, f"{OWN}:anything", *audit, "grpo.trainer.max_steps=20") == 3
    error = capsys.readouterr().err
    # Two steps of eight answers are refused by nobody, then all are: half of those of the steps 2 and 3.
    assert "step 3: audit_gap 0.5 is over its limit 0.1 over the last 2 steps (grpo.watch)" in error
    run = last_run(world)
    assert run.info.status == "FINISHED"
    assert "audit_gap" in run.data.tags["refused"]
    assert run.data.metrics["grpo/alarm/audit_gap"] == 1.0
    assert {a.path for a in MlflowClient().list_artifacts(run.info.run_id, "grpo")} == {
        "grpo/rewards.png",
        "grpo/rollouts.parquet",
    }
    assert not list(world.folder.glob("adapters/*/manifest.json"))


@pytest.mark.parametrize(("name", "kind"), [("hangs", "timeout"), ("raises", "error: KeyError")])
def test_a_verifier_that_fails_stops_the_run_and_is_named(
    world: World, given: list[str], name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    many = ["grpo.trainer.per_device_train_batch_size=24", "verifier.time_s=0.05"]
    assert world.run("grpo", *given, *many, f"{OWN}:{name}") == 2
    error = capsys.readouterr().err
    assert "24 of the last 24 answers have no verdict" in error
    assert kind in error


def test_answers_that_are_worth_the_same_teach_nothing(world: World, finished: World, given: list[str]) -> None:
    """Not even rounding errors, of a worth that float32 doesn't hold: the adapter comes out as it went in."""
    shaped = ["grpo.rewards.format.weight=0.7", f"{OWN}:anything", "grpo.trainer.num_generations=6"]
    size = ["grpo.trainer.per_device_train_batch_size=12", "recipe=dapo", "grpo.trainer.max_steps=2"]
    assert world.run("grpo", *given, *shaped, *size) == 0
    assert {record["reward"] for record in rollouts(world)} == {round(1.7 * 2**16) / 2**16}
    before, after = weights(finished.product("adapter")), weights(world.product("adapter"))
    assert all(bool((before[name] == after[name]).all()) for name in before)  # type: ignore[attr-defined]


def test_answers_without_a_verdict_teach_nothing(world: World, finished: World, given: list[str]) -> None:
    """Where verifiers may fail and all do, the adapter comes out as it went in."""
    allowed = ["verifier.max_failed=1.0", f"{OWN}:raises", "grpo.trainer.max_steps=2"]
    assert world.run("grpo", *given, *allowed) == 0
    before, after = weights(finished.product("adapter")), weights(world.product("adapter"))
    assert all(bool((before[name] == after[name]).all()) for name in before)  # type: ignore[attr-defined]
    found = rollouts(world)
    assert all(r["reward"] is None and str(r["outcome"]).startswith("error: KeyError") for r in found)
    assert last_run(world).data.metrics["grpo/verifier/num_failed"] == 16


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["grpo.trainer.num_generations=3"], "grpo.trainer: generation_batch_size (8) must be divisible"),
        (["grpo.trainer.max_completion_length=1020"], "is over the 1024 tokens"),
        (["grpo.trainer.use_vllm=true"], "grpo.trainer.use_vllm: vLLM is not installed"),
        (["grpo.trainer.num_iterations=3"], "grpo.trainer.save_steps: 3 steps share"),
        (["adapter=p_tuning", "grpo.start=base"], "adapter: grpo trains lora and ia3 adapters, not p_tuning"),
        (["task.verify=none"], "task.verify: my_routing has no verifier"),
        (["task.audit=exakt"], "task.audit: expected a verifier's name"),
        (["grpo.adapter=data"], "manifest.json"),
        (["model.id=data/models/tiny"], "was trained on"),
        (["adapter=pissa", "grpo.start=base", "recipe=grpo"], "grpo.trainer.beta: the reference is the base"),
    ],
)
def test_what_cannot_be_trained_is_told_by_its_field(
    world: World, given: list[str], overrides: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "adapter=" in overrides[0]:
        kept = [o for o in world.overrides() if not o.startswith("adapter.")]
        world.overrides = lambda: kept  # type: ignore[method-assign]
    assert world.run("grpo", *given, *overrides) == 2
    assert told in capsys.readouterr().err
    assert not list(world.folder.glob("adapters/*/manifest.json"))


def test_the_flow_reinforces_what_it_fine_tuned_and_compares_the_two(world: World) -> None:
    # The model is random: no rows are left within a band of pass rates.
    settings = [*SMALL, "experiment=reinforce", "grpo.pass_rate.samples=null", "grpo.trainer.learning_rate=0.01"]
    assert world.run("finetune", *settings) == 0
    found = [products.load(path.parent) for path in world.folder.glob("adapters/*/manifest.json")]
    adapters = {product.made_by["stage"]: product for product in found}
    assert adapters["grpo"].about["parent"]["digest"] == adapters["sft"].digest
    scores = products.load(world.product("scores"))
    assert scores.about["adapter_digest"] == adapters["grpo"].digest
    assert set(scores.about["subjects"]) == {"base", "adapter", "parent"}
    assert scores.about["about"]["parent"]["adapter digest"] == adapters["sft"].digest
    assert "eval/correctness/accuracy_vs_parent_low" in scores.about["metrics"]
    version = MlflowClient().get_model_version_by_alias(world.folder.name, "staging")
    assert version.tags["adapter.digest"] == adapters["grpo"].digest
    assert version.tags["adapter.parent"] == adapters["sft"].digest
    assert version.tags["adapter.stage"] == "grpo"
    # Alone, a stage takes what the same flow made.
    assert world.run("evaluate", *settings) == 0
