"""A student that learns from a teacher, every method for real on small models: what is learnt, kept, refused."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from transformers import AutoTokenizer

from pipelines import product as products
from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.dataset.questions import FILE, fingerprints, read_questions
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows
from pipelines.policy import stored_logits
from pipelines.subjects import teacher as teachers
from tests.conftest import World

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    "distill.trainer.max_steps=4",
    "distill.trainer.per_device_train_batch_size=8",
    "distill.trainer.save_steps=2",
    "distill.trainer.logging_steps=1",
    "distill.trainer.learning_rate=0.01",
    "distill.trainer.lr_scheduler_type=constant",
]
SHORT = "distill.trainer.max_completion_length=8"
LIVE = ("on_policy", "prompted", "cross_tokenizer")
FOREIGN_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def given(finished: World) -> list[str]:
    """The rows of the flow that ran once, and its adapter as the teacher of a student that begins anew."""
    teacher = ["teacher.kind=adapter", f"teacher.at={finished.product('adapter')}"]
    return [f"distill.rows={finished.product('rows')}", "distill.start=base", *teacher, *SMALL]


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory, small_rows: Path) -> Path:
    """A model of 900 tokens of its own, with another chat template."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("foreign")
    trained = ByteLevelBPETokenizer()
    trained.train([str(small_rows / "train.csv")], vocab_size=900, special_tokens=["<pad>", "<eot>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<eot>", pad_token="<pad>")
    tokenizer.chat_template = FOREIGN_TEMPLATE
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    texts = (small_rows / "train.csv").read_text(encoding="utf-8").splitlines()[1:]
    says_one_thing(model, tokenizer, texts)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def says_one_thing(model: Any, tokenizer: Any, texts: list[str]) -> None:
    """Trains the model for a second: whatever it is asked, it answers age_limit."""
    import torch

    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=0.01), torch.Generator().manual_seed(0)
    told = [f"[user]{text}<eot>[assistant]age_limit<eot>" for text in texts]
    answer = len(tokenizer("age_limit<eot>")["input_ids"])
    for _ in range(40):
        numbers = torch.randint(len(told), (16,), generator=draw).tolist()
        batch = tokenizer([told[n] for n in numbers], return_tensors="pt", padding=True, padding_side="left")
        labels = batch["input_ids"].clone()
        labels[:, :-answer] = -100
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory, finished: World, small_model: Path) -> Path:
    """What generate leaves: the rows with every answer the same, and the small model's distributions beside them."""
    return write_generated(
        tmp_path_factory.mktemp("generated"),
        finished.product("rows"),
        lambda row: replace(row, completion=[{"role": "assistant", "content": "age_limit"}]),
        small_model,
    )


def write_generated(folder: Path, rows: Path, change: Callable[[Row], Row], model: Path | None) -> Path:
    source = products.load(rows)
    work = products.partial(folder / "made")
    shutil.copytree(rows, work, dirs_exist_ok=True)
    (work / products.MANIFEST).unlink()
    changed = [change(row) for row in read_rows(rows / "train.jsonl")]
    (work / "train.jsonl").write_text("".join(json.dumps(row.as_dict()) + "\n" for row in changed))
    if model is not None:
        stored_logits.store(opened(model), changed, 4, 16, work / stored_logits.FOLDER, lambda count: None)
    about = {**source.about, "teacher": {"kind": "model", "digest": "of a teacher", "license": {"id": "MIT"}}}
    made_by = {"run_id": "none", "stage": "generate", "fingerprint": "f" * 64}
    return products.publish(work, folder / "made", "generated", made_by, about).folder


def opened(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    from pipelines.subjects.teacher import Loaded

    return Loaded(AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model), {})


def model(folder: Path) -> list[str]:
    return ["teacher.kind=model", f"teacher.at={folder}", "teacher.license={id: MIT, conditions: null, url: null}"]


def of(method: str, foreign: Path, generated: Path) -> list[str]:
    """What a method needs beside `given`."""
    if method == "cross_tokenizer":
        return [f"distillation={method}", SHORT, *model(foreign), *BYTES]
    if method == "prompted":
        return [f"distillation={method}", SHORT, "distill.prompt=Answer in capitals."]
    if method == "on_policy":
        return [f"distillation={method}", SHORT]
    return [f"distillation={method}", f"distill.generated={generated}", "teacher.kind=null", "teacher.at=null"]


BYTES = [
    "++distill.trainer.uld_token_merge_strategy=bayesian",
    "++distill.trainer.uld_use_hybrid_loss=true",
    "++distill.trainer.uld_skip_student_eos=false",
    "++distill.trainer.uld_skip_teacher_eos=false",
]
# Probabilities of a random model's tokens are too small for differences between them to move it.
BEGIN = ["++distill.trainer.uld_crossentropy_weight=1.0", "distill.trainer.lmbda=0.0"]


def last_run(world: World) -> mlflow.entities.Run:
    mlflow.set_tracking_uri(world.store)
    client = MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    found: mlflow.entities.Run = client.search_runs(experiments, "tags.stage = 'distill'", max_results=1)[0]
    return found


def weights(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def losses(world: World) -> list[float]:
    history = json.loads((world.product("adapter") / "training.json").read_text())
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("method", ["on_policy", "prompted", "cross_tokenizer", "sequence", "stored_logits"])
def test_every_method_teaches_a_student_and_leaves_its_teacher_as_it_was(
    method: str, world: World, finished: World, given: list[str], foreign: Path, generated: Path
) -> None:
    before = [products.folder_files(folder) for folder in (world.model, finished.product("adapter"), foreign)]
    longer = "distill.trainer.max_steps=24"
    further = BEGIN if method == "cross_tokenizer" else []
    assert world.run("distill", *given, *of(method, foreign, generated), longer, *further) == 0
    assert [products.folder_files(f) for f in (world.model, finished.product("adapter"), foreign)] == before
    found = losses(world)
    assert len(found) == 24
    # The head of a random model is small, and frozen: no token gets more than four times its even share, 1.3 nats.
    assert sum(found[-6:]) < (0.98 if method == "cross_tokenizer" else 0.95) * sum(found[:6])
    made = products.load(world.product("adapter"))
    assert made.about["recipe"] == method
    assert made.about["parent"] is None
    trained = read_rows(finished.product("rows") / "train.jsonl")
    assert read_questions(made.file(FILE)) == fingerprints(trained)
    if method in LIVE:
        assert made.about["generated"] is None
        wanted = ("model", "MIT") if method == "cross_tokenizer" else ("adapter", "CC-BY-4.0")
        assert (made.about["teacher"]["kind"], made.about["teacher"]["license"]["id"]) == wanted
    else:
        assert made.about["generated"] == products.load(generated).digest
        assert made.about["teacher"] == {"kind": "model", "digest": "of a teacher", "license": {"id": "MIT"}}
    run = last_run(world)
    logged = MlflowClient().get_metric_history(run.info.run_id, "distill/loss")
    assert [metric.value for metric in sorted(logged, key=lambda m: m.step)] == pytest.approx(found)
    assert {a.path for a in MlflowClient().list_artifacts(run.info.run_id, "distill")} == {"distill/loss.png"}


def test_a_student_learns_on_from_its_adapter(world: World, finished: World, given: list[str]) -> None:
    parent = products.load(finished.product("adapter"))
    own = ["distill.start=adapter", f"distill.adapter={parent.folder}", SHORT]
    # Its own teacher has nothing to say to it.
    assert world.run("distill", *given, *own, "distill.trainer.learning_rate=1e-9") == 0
    made = products.load(world.product("adapter"))
    assert made.about["parent"] == {"digest": parent.digest, "run_id": parent.run_id, "folder": str(parent.folder)}
    assert max(losses(world)) < 1e-6
    assert made.about["teacher"]["digest"] == parent.digest


@pytest.mark.parametrize(
    "method",
    [
        "on_policy",
        "stored_logits",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("cross_tokenizer", "sequence")),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_adapter(
    method: str, world: World, given: list[str], foreign: Path, generated: Path, tmp_path: Path
) -> None:
    """In its second epoch, too: there are nine steps in one."""
    whole = World(tmp_path / "whole", world.store, world.model, world.rows)
    settings = [*given, *of(method, foreign, generated), "distill.trainer.max_steps=16", "distill.trainer.save_steps=1"]
    assert whole.run("distill", *settings) == 0

    def stop() -> None:
        while not list(world.folder.glob("adapters/*.partial/checkpoints/checkpoint-11")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop)
    watcher.start()
    assert world.run("distill", *settings) == 143
    watcher.join()
    assert last_run(world).info.status == "KILLED"
    assert world.run("distill", *settings) == 0
    resumed, uninterrupted = weights(world.product("adapter")), weights(whole.product("adapter"))
    assert resumed.keys() == uninterrupted.keys()
    assert all(bool((resumed[name] == uninterrupted[name]).all()) for name in resumed)


def test_a_registered_version_teaches_and_is_named_by_its_content(
    finished: World, world: World, given: list[str]
) -> None:
    version = f"models:/{finished.folder.name}@staging"
    taught = [*given, "teacher.kind=version", f"teacher.at={version}", SHORT, "distill.trainer.max_steps=2"]
    assert world.run("distill", *taught) == 0
    mlflow.set_tracking_uri(finished.store)
    held = MlflowClient().get_model_version_by_alias(finished.folder.name, "staging")
    teacher = products.load(world.product("adapter")).about["teacher"]
    assert teacher["version"] == f"models:/{finished.folder.name}/{held.version}"
    assert teacher["digest"] == held.tags["model.digest"]
    assert teacher["license"]["id"] == held.tags["base.license"]


def test_a_teacher_in_four_bits_teaches(finished: World, world: World, given: list[str]) -> None:
    four_bits = (
        "{bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true, bnb_4bit_compute_dtype: float32, experts: true}"
    )
    asked = [*given, f"teacher.quantization={four_bits}"]
    config = compose([*world.overrides(), *asked]).config
    there = teachers.loaded(config, teachers.find(config))
    assert "Linear4bit" in {type(module).__name__ for module in there.model.modules()}
    assert world.run("distill", *asked, SHORT, "distill.trainer.max_steps=2") == 0


def test_a_teacher_that_is_told_more_says_something_else(world: World, given: list[str]) -> None:
    """The base as its own teacher: without a prompt there is nothing to learn, with one there is."""
    alone = [*given, "teacher.kind=base", "teacher.at=null", SHORT, "distill.trainer.max_steps=2"]
    assert world.run("distill", *alone) == 0
    first, second = losses(world)
    assert abs(first) < 1e-6
    assert abs(second) < 1e-4  # the optimizer has made something of the rounding
    shutil.rmtree(world.folder / "adapters")
    assert world.run("distill", *alone, "distillation=prompted", "distill.prompt=Answer in capitals.") == 0
    assert min(losses(world)) > 1e-4


def test_of_an_episode_only_what_the_assistant_says_is_learnt(
    world: World, finished: World, given: list[str], tmp_path: Path
) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "rates"}}}
    tool = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}

    def episode(row: Row) -> Row:
        turns: list[dict[str, Any]] = [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "look", "content": "UNLEARNT 4711"},
            {"role": "assistant", "content": "exchange_rate"},
        ]
        return replace(row, completion=turns, tools=[tool])

    rows = write_generated(tmp_path, finished.product("rows"), episode, None)
    assert world.run("distill", *given, "distillation=sequence", f"distill.generated={rows}") == 0
    run = last_run(world)
    page = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="audit/loss_mask.html"))
    marked = re.findall(r"<mark[^>]*>(.*?)</mark>", page.read_text(), re.DOTALL)
    learnt = "".join(marked)
    assert "look" in learnt
    assert "exchange_rate" in learnt
    assert "4711" not in learnt
    assert "UNLEARNT" not in learnt
    assert "4711" in re.sub(r"<[^>]*>", "", page.read_text())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["teacher.kind=null", "teacher.at=null"], "teacher.kind: nobody to learn from"),
        (["distill.trainer.beta=2"], "distill.trainer: beta must be in [0.0, 1.0]"),
        (["distill.trainer.max_completion_length=1020"], "is over the 1024 tokens"),
        (["distill.trainer.max_completion_length=500"], "the teacher reads 512"),
        (["distill.trainer.per_device_train_batch_size=500"], "a step asks 500 rows, there are "),
        (["adapter=p_tuning"], "adapter: distill.method on_policy trains lora and ia3 adapters, not p_tuning"),
        (["adapter.peft.target_modules=[lm_head]"], "leave lm_head out"),
        (["task.environment=bank", "task.max_turns=4"], "distill.method: on_policy has no episodes in an environment"),
        (["distillation=cross_tokenizer", "distill.trainer.use_uld_loss=false"], "use distillation=on_policy"),
        (["distillation=cross_tokenizer", "distill.trainer.max_length=40"], "distill.trainer.max_length: the longest"),
    ],
)
def test_what_cannot_be_learnt_is_told_by_its_field(
    world: World, given: list[str], overrides: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if overrides[0].startswith("adapter="):
        kept = [o for o in world.overrides() if not o.startswith("adapter.")]
        world.overrides = lambda: kept  # type: ignore[method-assign]
    assert world.run("distill", *given, *overrides) == 2
    assert told in capsys.readouterr().err
    assert not list(world.folder.glob("adapters/*/manifest.json"))


def test_another_vocabulary_is_refused_and_named(
    world: World, given: list[str], foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("distill", *given, *model(foreign)) == 2
    told = capsys.readouterr().err
    theirs = len(AutoTokenizer.from_pretrained(foreign))
    assert f"3072 tokens for the student, {theirs} for the teacher" in told
    assert "token 0 is '<|endoftext|>' for the student, '<pad>' for the teacher" in told
    assert "eos_token is '<|im_end|>' for the student, '<eot>' for the teacher" in told
    assert "use distillation=cross_tokenizer" in told


def test_one_vocabulary_is_said_where_two_are_bridged(
    world: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    itself = [
        "teacher.kind=base",
        "teacher.at=null",
        SHORT,
        *BYTES,
        "distill.trainer.lmbda=0.0",
        "distill.trainer.learning_rate=1e-9",
    ]
    assert world.run("distill", *given, "distillation=cross_tokenizer", *itself) == 0
    # Prompts, places and ends of turns meet: nobody is told from himself.
    assert max(losses(world)) < 1e-6
    assert "have one vocabulary: distillation=on_policy compares them" in capsys.readouterr().out


def test_distributions_of_other_rows_are_refused(
    world: World, given: list[str], generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_generated(tmp_path, generated, lambda row: replace(row, completion=[*row.completion]), None)
    work = products.partial(tmp_path / "moved")
    shutil.copytree(other, work, dirs_exist_ok=True)
    lines = (work / "train.jsonl").read_text().splitlines(keepends=True)
    (work / "train.jsonl").write_text("".join([*lines[1:], lines[0]]))
    (work / products.MANIFEST).unlink()
    found = products.load(other)
    moved = products.publish(work, tmp_path / "moved", "generated", found.made_by, found.about).folder
    assert world.run("distill", *given, "distillation=stored_logits", f"distill.generated={moved}") == 2
    told = capsys.readouterr().err
    assert "stored.json: the stored distributions are of other rows than those beside it" in told
    assert PROJECT.as_posix() not in told


# --- flows --------------------------------------------------------------------------------------


def made_by_prepare(world: World) -> products.Product:
    found = [products.load(path.parent) for path in (world.folder / "rows").glob("*/manifest.json")]
    return next(one for one in found if one.kind == "rows")


def lineage_of(world: World) -> dict[str, str]:
    """The tags of the version that the flow registered."""
    mlflow.set_tracking_uri(world.store)
    tags: dict[str, str] = MlflowClient().get_model_version(world.folder.name, "1").tags
    return tags


def test_a_flow_of_generate_and_distill_registers_whom_it_learnt_from(
    world: World, foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["generate.keep.verified=false", "generate.answers=2", "generate.max_new_tokens=16", *SMALL]
    teacher = ["teacher.kind=model", f"teacher.at={foreign}", "teacher.license={id: MIT, conditions: null, url: null}"]
    flow = ["experiment=distill_generated", "distillation=sequence", *teacher, *asked]
    assert world.run("finetune", *flow) == 0
    (manifest,) = (world.folder / "rows").glob("*-by-model-*/manifest.json")
    written, tags = products.load(manifest.parent), lineage_of(world)
    assert written.about["rows_digest"] == made_by_prepare(world).digest
    assert (tags["teachers"], tags["teachers.licenses"]) == (written.about["teacher"]["digest"], "MIT")
    assert (tags["adapter.generated"], tags["adapter.stage"]) == (written.digest, "distill")
    assert {row.completion[0]["content"] for row in read_rows(manifest.parent / "train.jsonl")} >= {"age_limit"}
    assert world.run("sft", f"sft.rows={written.folder}") == 0  # rows like any other
    capsys.readouterr()
    assert world.run("finetune", *flow, "gate.licenses.teachers=[CC0-1.0]") == 3
    assert "teacher.license: gate staging allows teachers under CC0-1.0, and this one's is MIT" in (
        capsys.readouterr().err
    )


def test_a_flow_of_three_trainings_keeps_parents_and_teachers(finished: World, world: World) -> None:
    teacher = ["teacher.kind=adapter", f"teacher.at={finished.product('adapter')}"]
    grpo = ["grpo.trainer.max_steps=2", "grpo.trainer.save_steps=2", "grpo.trainer.max_completion_length=8"]
    batch = ["grpo.trainer.per_device_train_batch_size=16", "grpo.trainer.gradient_accumulation_steps=1"]
    assert world.run("finetune", "experiment=distill_reinforce", *teacher, *grpo, *batch, *SMALL, SHORT) == 0
    made = {
        found.made_by["stage"]: found
        for found in (products.load(path.parent) for path in (world.folder / "adapters").glob("*/manifest.json"))
    }
    assert made["distill"].about["parent"]["digest"] == made["sft"].digest
    assert made["grpo"].about["parent"]["digest"] == made["distill"].digest
    assert made["sft"].about["teachers"] == []
    assert made["grpo"].about["teachers"] == made["distill"].about["teachers"] == [made["distill"].about["teacher"]]
    assert lineage_of(world)["teachers"] == products.load(finished.product("adapter")).digest


def test_a_teacher_that_is_not_there_is_told_before_anything_is_trained(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("finetune", "experiment=distill", "teacher.at=models:/no_such_model@staging", *SMALL) == 2
    told = capsys.readouterr()
    assert "teacher.at: " in told.err
    assert "no_such_model" in told.err
    assert "prepare: started" not in told.out
    assert not (world.folder / "adapters").exists()
