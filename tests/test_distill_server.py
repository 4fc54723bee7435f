"""A student that learns from a teacher at a server, for real: the resident teacher's loss, outages, refusals."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks import distillation_divergence as benchmark
from pipelines import product as products
from pipelines.policy import server_teacher
from pipelines.policy.stored_logits import divergence
from pipelines.subjects.distributions import Place
from tests.conftest import World
from tests.subjects import openai_server, serving

pytestmark = pytest.mark.usefixtures("one_thread")
ALL, FEW = 3072, 300  # tokens of the shipped vocabulary, and of a smaller one
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SMALL = [
    "distill.start=base",
    "distill.trainer.per_device_train_batch_size=8",
    "distill.trainer.save_steps=1",
    "distill.trainer.logging_steps=1",
    "distill.trainer.learning_rate=0.01",
    "distill.trainer.lr_scheduler_type=constant",
    "distill.trainer.max_completion_length=8",
    "teacher.license={id: MIT, conditions: null, url: null}",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, small_model: Path, finished: World) -> Path:
    """The small model with what the flow that ran once taught it."""
    folder, adapter = tmp_path_factory.mktemp("teacher"), finished.product("adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_model), str(adapter))
    model.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(adapter).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def few_tokens(tmp_path_factory: pytest.TempPathFactory, small_rows: Path) -> tuple[Path, Path]:
    """A student and a teacher of another seed, of 300 tokens: all of them are told at every place."""
    trained = ByteLevelBPETokenizer()
    trained.train([str(small_rows / "train.csv")], vocab_size=FEW, special_tokens=["<pad>", "<eot>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<eot>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    config = Qwen3Config(
        vocab_size=FEW,
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.2,
        eos_token_id=1,
        pad_token_id=0,
    )
    folders = (tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("teacher"))
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def address(teacher: Path) -> Iterator[str]:
    with openai_server.in_thread(openai_server.build(str(teacher), max_logprobs=-1, max_model_len=512)) as at:
        yield at


def at_server(at: str, teacher: Path, top_k: int = 20) -> list[str]:
    return ["teacher.kind=endpoint", f"teacher.at={at}", f"teacher.model={teacher}", f"distill.top_k={top_k}"]


def rows_of(world: World) -> list[str]:
    return [f"distill.rows={world.product('rows')}", *SMALL]


def losses(world: World) -> list[float]:
    history = json.loads((world.product("adapter") / "training.json").read_text())
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize(
    ("beta", "more"),
    [
        pytest.param(0.0, [], marks=pytest.mark.slow),
        (0.5, ["distill.trainer.gradient_accumulation_steps=2", "distill.trainer.per_device_train_batch_size=4"]),
        pytest.param(1.0, ["distillation=prompted", "distill.prompt=Answer in capitals."], marks=pytest.mark.slow),
    ],
)
def test_a_server_that_tells_all_teaches_what_the_resident_teacher_does(
    beta: float, more: list[str], finished: World, few_tokens: tuple[Path, Path], tmp_path: Path
) -> None:
    student, teacher = few_tokens
    asked = [*rows_of(finished), *more, f"distill.trainer.beta={beta}", "distill.trainer.max_steps=2"]
    world, beside = (World(tmp_path / name, finished.store, student, finished.rows) for name in ("server", "beside"))
    assert beside.run("distill", *asked, "teacher.kind=model", f"teacher.at={teacher}") == 0
    with openai_server.in_thread(openai_server.build(str(teacher), max_logprobs=-1)) as at:
        assert world.run("distill", *asked, *at_server(at, teacher, FEW)) == 0
    assert losses(world) == pytest.approx(losses(beside), abs=1e-5)
    assert min(losses(world)) > 0.01


def test_a_few_tokens_a_place_teach(world: World, finished: World, address: str, teacher: Path) -> None:
    assert world.run("distill", *rows_of(finished), *at_server(address, teacher), "distill.trainer.max_steps=24") == 0
    found = losses(world)
    assert sum(found[-6:]) < 0.95 * sum(found[:6])
    made = products.load(world.product("adapter"))
    about = made.about["teacher"]
    assert (about["kind"], about["endpoint"], about["model"]) == ("endpoint", address, str(teacher))
    assert about["license"]["id"] == "MIT"
    assert made.about["teachers"] == [about]


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_costs_nothing(
    world: World, finished: World, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, log = serving.free_port(), tmp_path / "server.log"
    asked = [*rows_of(finished), "distill.trainer.max_steps=5"]
    asked += at_server(f"http://127.0.0.1:{port}/v1", teacher)
    whole = World(tmp_path / "whole", world.store, world.model, world.rows)

    def restart(done: threading.Event) -> None:
        with serving.serving(teacher, serving.OWN, log, port):
            while not list(world.folder.glob("adapters/*.partial/checkpoints/checkpoint-2")):
                time.sleep(0.005)
        with serving.serving(teacher, serving.OWN, log, port):
            done.wait()

    done = threading.Event()
    server = threading.Thread(target=restart, args=(done,))
    server.start()
    try:
        serving.wait(f"http://127.0.0.1:{port}/health")
        assert world.run("distill", *asked) == 0
        told = capsys.readouterr().out
        assert "is away" in told
        assert "is back" in told
        assert whole.run("distill", *asked) == 0
    finally:
        (world.folder / "adapters/x.partial/checkpoints/checkpoint-2").mkdir(parents=True, exist_ok=True)
        done.set()
        server.join()
    once, twice = (load_file(w.product("adapter") / "adapter_model.safetensors") for w in (whole, world))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_a_spending_limit_ends_training_with_what_there_is(
    world: World, finished: World, address: str, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*rows_of(finished), *at_server(address, teacher), "distill.trainer.max_steps=50"]
    prices = ["teacher.price_in=10", "teacher.price_out=10"]
    assert world.run("distill", *asked, *prices, "teacher.spending_limit=0.03") == 0
    assert "stopped early: teacher.spending_limit of $0.03 leaves no step after" in capsys.readouterr().out
    assert 0 < len(losses(world)) < 50
    assert world.run("distill", *asked, *prices, "teacher.spending_limit=0.004") == 2
    assert "teacher.spending_limit: not even one step, 8 prompts of up to " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["distill.trainer.temperature=0.7"], "distill.trainer.temperature: an endpoint tells its distributions at"),
        (
            ["distillation=cross_tokenizer"],
            "teacher.kind: distill.method cross_tokenizer needs a teacher",
        ),
        (["distill.trainer.max_completion_length=500"], "of prompt and answer (HTTP 400: This model's maximum"),
        (["gate.licenses.teachers=[CC0-1.0]"], "teacher.license: gate staging allows teachers under CC0-1.0"),
        ([f"distill.top_k={ALL + 1}"], "distill.top_k: "),
    ],
)
def test_what_a_server_cannot_teach_is_told_by_its_field(
    world: World,
    finished: World,
    address: str,
    teacher: Path,
    overrides: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [*rows_of(finished), *at_server(address, teacher), "distill.trainer.max_steps=2"]
    assert world.run("distill", *asked, *overrides) in (2, 3)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task.environment=bank", "task.max_turns=4"], "distill.method: on_policy has no episodes in an environment"),
        (["teacher.at=http://127.0.0.1:9/v1"], "teacher.at: nothing listens at http://127.0.0.1:9/v1"),
    ],
)
def test_a_flow_is_refused_before_anything_is_trained(
    world: World,
    address: str,
    teacher: Path,
    overrides: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["experiment=distill", *SMALL, *at_server(address, teacher), "distill.start=adapter", *overrides]
    assert world.run("finetune", *asked) in (2, 4)
    shown = capsys.readouterr()
    assert told in shown.err
    assert "sft: started" not in shown.out
    assert not (world.folder / "adapters").exists()


# --- the loss -------------------------------------------------------------------------------------


def place(ids: list[int], logp: torch.Tensor) -> Place:
    return Place(ids, logp[ids].tolist(), [None] * len(ids))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_all_tokens_told_are_the_whole_divergence(beta: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 40, requires_grad=True), torch.randn(5, 40).mul(3)
    logp = teacher.log_softmax(-1)
    told = [[place(row.argsort(descending=True).tolist(), row) for row in logp]]
    ids, values = server_teacher.tensors(told, 5, 40)
    found = divergence(student, ids[0], values[0], beta)
    wanted = benchmark.reference(student, teacher, beta, 1.0)
    assert torch.allclose(found, wanted, atol=1e-5)
    mine, theirs = (torch.autograd.grad(one.sum(), student)[0] for one in (found, wanted))
    assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_fewer_tokens_are_the_divergence_of_the_outcomes(beta: float) -> None:
    """Places of four and of three tokens, one of them none of the student's, beside one another."""
    torch.manual_seed(1)
    student, logp = torch.randn(2, 10), torch.randn(2, 12).log_softmax(-1)
    kept = [[3, 1, 7, 9], [2, 11, 0]]
    ids, values = server_teacher.tensors([[place(one, row) for one, row in zip(kept, logp, strict=True)]], 3, 10)
    assert ids.shape == (1, 3, 4)
    found = divergence(student, ids[0, :2], values[0, :2], beta)
    for number, names in enumerate(([3, 1, 7, 9], [2, 0])):
        ours, theirs = student[number].softmax(-1)[names], logp[number].exp()[names]
        mine, told = (torch.cat([one, 1 - one.sum(0, keepdim=True)]).log()[None] for one in (ours, theirs))
        assert float(found[number]) == pytest.approx(float(benchmark.reference(mine, told, beta, 1.0)), abs=1e-5)


def test_a_sure_teacher_leaves_the_loss_finite() -> None:
    told = [[Place([4, 5], [0.0, -60.0], [None, None])]]
    ids, values = server_teacher.tensors(told, 1, 10)
    for beta in (0.0, 0.5, 1.0):
        logits = torch.randn(1, 10, requires_grad=True)
        divergence(logits, ids[0], values[0], beta).sum().backward()
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())


def test_parts_at_once_and_capped_logits_are_the_model_s(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    model = Gemma2ForCausalLM(config).eval()
    tokens = torch.randint(50, (1, 9))
    ids = torch.randint(50, (9, 1))
    values = torch.tensor([[0.25, 0.75]]).log().expand(9, 2)
    hidden = model.model(tokens).last_hidden_state[0]
    logits = model(tokens).logits[0]
    wanted = divergence(logits, ids, values, 0.5).sum()
    found: list[Any] = []
    for at_once in (server_teacher.LOGITS_AT_ONCE, 100):
        monkeypatch.setattr(server_teacher, "LOGITS_AT_ONCE", at_once)
        loss, entropy = server_teacher.over_places(model, hidden, ids, values, 0.5)
        assert float(loss.detach()) == pytest.approx(float(wanted.detach()), abs=1e-5)
        own = logits.log_softmax(-1)
        assert float(entropy) == pytest.approx(float(-(own.exp() * own).sum()), abs=1e-4)
        found.append(torch.autograd.grad(loss, model.lm_head.weight, retain_graph=True)[0])
    assert torch.allclose(found[0], found[1], atol=1e-6)
