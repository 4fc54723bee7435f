"""Asynchronous rollouts up to the first forward pass, which needs a GPU: settings, reward, refusals and the trainer."""

import multiprocessing
import queue
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from trl.experimental.async_grpo import AsyncGRPOConfig

from pipelines import grpo
from pipelines.config.compose import compose
from pipelines.config.schema import Config, Task
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows, write_rows
from pipelines.environments.tools import environment_class
from pipelines.errors import Refused, UserError
from pipelines.policy.asynchronous import Logged, build_trainer, settings_of, train
from pipelines.policy.base import end_tokens, load_tokenizer
from pipelines.product import load
from pipelines.rewards.precheck import check
from pipelines.rewards.spawned import SpawnedReward, spawned
from pipelines.tasks import is_isolated
from tests.conftest import World

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = "recipe=asynchronous"
ASKED = [("Where is my card?", "card_arrival"), ("Change my PIN", "change_pin")]
ROWS = [
    Row(f"r{number}", "toy", [{"role": "user", "content": text}], [], label, label, f"toy.csv:{number}", f"g{number}")
    for number, (text, label) in enumerate(ASKED)
]


def configured(*overrides: str) -> Config:
    return compose([RECIPE, "task=support_routing", *overrides]).config


def test_recipe_says_what_the_trainer_does(tmp_path: Path) -> None:
    found = settings_of(configured("grpo.trainer.learning_rate=0.002", "+grpo.trainer.top_p=0.9"), tmp_path)
    assert isinstance(found, AsyncGRPOConfig)
    assert (found.learning_rate, found.top_p, found.max_completion_length, found.num_generations) == (0.002, 0.9, 32, 8)
    assert (found.token_budget, found.max_staleness, found.epsilon, found.epsilon_high) == (0, 4, 0.2, 0.2)
    assert (found.per_device_train_batch_size, found.seed, found.report_to) == (32, 42, [])
    assert found.vllm_server_base_url == "http://localhost:8000"
    # The seven that it has no names for say nothing else than what it does.
    assert not hasattr(found, "loss_type")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("grpo.trainer.loss_type=dapo", "grpo.trainer.loss_type: expected 'bnpo'"),
        ("grpo.trainer.scale_rewards=none", "grpo.trainer.scale_rewards: expected 'group'"),
        ("grpo.trainer.importance_sampling_level=sequence", "grpo.trainer.importance_sampling_level: expected 'token'"),
        ("grpo.trainer.mask_truncated_completions=true", "grpo.trainer.mask_truncated_completions: expected False"),
        ("grpo.trainer.beta=0.04", "grpo.trainer.beta: expected 0.0"),
        ("grpo.trainer.num_iterations=2", "grpo.trainer.num_iterations: expected 1"),
        ("grpo.trainer.use_vllm=false", "grpo.trainer.use_vllm: expected True"),
        ("+grpo.trainer.vllm_mode=colocate", "grpo.trainer.vllm_mode: expected 'server'"),
        ("+grpo.trainer.generation_batch_size=64", "grpo.trainer.generation_batch_size: the trainer of"),
        ("+grpo.trainer.steps_per_generation=2", "no such setting; nearest valid name: "),
        ("+grpo.trainer.use_liger_kernel=true", "grpo.trainer.use_liger_kernel: is not for grpo.asynchronous"),
        ("+grpo.trainer.load_best_model_at_end=true", "grpo.trainer: --load_best_model_at_end requires"),
    ],
)
def test_key_without_effect_is_refused(override: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        settings_of(configured(override), tmp_path)


@pytest.mark.parametrize(
    ("recipe", "keys"),
    [
        ("dr_grpo", ["loss_type", "scale_rewards"]),
        ("grpo", ["beta", "loss_type", "use_bias_correction_kl"]),
        ("dapo", ["loss_type", "mask_truncated_completions"]),
        ("gspo", ["importance_sampling_level", "loss_type"]),
        ("cispo", ["loss_type"]),
    ],
)
def test_other_recipes_are_refused_by_what_they_change(recipe: str, keys: list[str], tmp_path: Path) -> None:
    config = compose([f"recipe={recipe}", "grpo.asynchronous=true", "grpo.trainer.use_vllm=true"]).config
    with pytest.raises(UserError) as refused:
        settings_of(config, tmp_path)
    assert sorted(line.partition(": ")[0] for line in str(refused.value).split("\n")) == [
        f"grpo.trainer.{k}" for k in keys
    ]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["grpo.start=adapter"], "grpo.start: asynchronous training trains a new adapter only"),
        (["task=bank"], "task.environment: asynchronous training can't"),
        (["adapter=qlora"], "adapter.quantization: "),
        (["task=arithmetic", "grpo.watch.audit_share=0.1"], "grpo.watch.audit_share: "),
        (["grpo.watch.zero_variance.stop=true"], "grpo.watch.zero_variance: "),
        ([], "compute.device: "),
        (["compute=gpu_24gb"], "grpo.asynchronous: asynchronous training needs packages that are not installed: vllm"),
    ],
)
def test_launcher_refuses_before_anything_is_made(
    world: World, overrides: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [o for o in world.overrides() if not o.startswith(("adapter.", "task"))]
    world.overrides = lambda: kept  # type: ignore[method-assign]
    assert world.run("grpo", RECIPE, *overrides) == 2
    assert told in capsys.readouterr().err
    assert not list(world.folder.iterdir())


def test_audit_that_is_not_asked_stops_nothing() -> None:
    with pytest.raises(UserError, match=r"^compute.device"):  # the next refusal
        check(configured("task=arithmetic"))


def test_environment_cannot_be_handed_over() -> None:
    """Why it is refused: pickling finds no class of that name."""
    with pytest.raises(Exception, match="Tools"):
        ForkingPickler.dumps(environment_class("bank"))


def in_child(reward: SpawnedReward, *calls: dict[str, Any]) -> list[list[float | None]]:
    """What the reward says in a spawned daemon process, as TRL asks it there; all that it started ends with it."""
    pool = multiprocessing.get_context("spawn").Pool(1)
    found = [pool.apply(reward, (), {"prompts": [], **given}) for given in calls]
    (child,) = multiprocessing.active_children()
    lists = [path.read_text() for path in Path(f"/proc/{child.pid}/task").glob("*/children")]
    started = [int(pid) for pid in " ".join(lists).split()]
    pool.close()
    pool.join()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert bool(started) == is_isolated(Task.model_validate_json(reward.task), None)
    return found


def call(number: int, *answers: str, tokens: int = 3) -> dict[str, Any]:
    return {
        "completions": [[{"role": "assistant", "content": answer}] for answer in answers],
        "completion_ids": [[5] * (tokens - 1) + [1]] * len(answers),
        "row": [number] * len(answers),
    }


def test_reward_travels_and_is_the_tasks(tmp_path: Path) -> None:
    config = configured(
        "grpo.rewards.format.weight=0.1", "grpo.rewards.length.weight=0.3", "grpo.rewards.length.soft_tokens=4"
    )
    reward = spawned(config, write_rows(tmp_path, "train", ROWS), tmp_path / "rollouts", "run", 8, [1])
    first, second = in_child(
        reward,
        call(0, "card_arrival", "change_pin", "nonsense", " card_arrival\n"),
        call(1, "card_arrival", "change_pin", tokens=5),
    )
    # Right and read: 1.1; read: 0.1; neither: 0. Five tokens are one of four over 8 - 4: -0.3 / 4. On a grid of 2^-16.
    assert first == pytest.approx([1.1, 0.1, 0.0, 1.1], abs=2**-17)
    assert second == pytest.approx([0.025, 1.025], abs=2**-17)
    assert all((reward * 2**16).is_integer() for reward in first + second if reward is not None)
    # A process that takes its place counts on.
    in_child(reward, call(0, "card_arrival"))
    files = sorted((tmp_path / "rollouts").iterdir())
    assert [path.name for path in files] == ["00000001.parquet", "00000002.parquet", "00000003.parquet"]
    kept = pq.read_table(files[0]).to_pylist()
    assert [record["outcome"] for record in kept] == ["right", "wrong", "wrong", "right"]
    assert [(record["row_id"], record["run_id"], record["finished"]) for record in kept] == [("r0", "run", True)] * 4


def test_failing_verifier_is_no_reward(tmp_path: Path) -> None:
    config = configured("task.verify=tests.own_verifier:raises", "verifier.max_failed=1.0", "verifier.workers=1")
    reward = spawned(config, write_rows(tmp_path, "train", ROWS), tmp_path / "rollouts", "run", 8, [1])
    assert in_child(reward, call(0, "card_arrival", "change_pin")) == [[None, None]]


class Empty(queue.Queue[Any]):
    """A queue that never waits for answers that don't come."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return super().get(block=False)


@dataclass
class Worker:
    """In place of the process that asks vLLM: makes no answers, and ends as TRL tells of such an end."""

    error: Exception
    rollout_buffer: queue.Queue[Any] = field(default_factory=Empty)
    metrics_queue: queue.Queue[Any] = field(default_factory=queue.Queue)
    told: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.told.append("start")

    def stop(self) -> None:
        self.told.append("stop")

    def update_model_version(self, model_version: int) -> None:
        self.told.append(f"version {model_version}")

    def check_health(self, stale_after_s: float) -> None:
        raise self.error


@dataclass
class Weights:
    """In place of vLLM: takes the weights."""

    sent: dict[str, torch.Tensor] = field(default_factory=dict)

    def init_weight_transfer(self) -> None: ...

    def pause(self) -> None: ...

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.sent = {name: tensor.clone() for name, tensor in iterator}

    def resume(self) -> None: ...

    def destroy(self) -> None: ...


def failed(text: str) -> RuntimeError:
    """As `AsyncRolloutWorker.check_health` raises it."""
    error = RuntimeError("Rollout worker child has failed; see chained exception.")
    error.__cause__ = RuntimeError(f"{text}\nTraceback (most recent call last):\n ...")
    return error


def test_trainer_has_a_new_adapter_and_sends_the_base(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TRL looks up how fast a GPU of this name could be.
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "none")
    config = configured(f"model.id={small_model}", "adapter.peft.r=4", "grpo.trainer.max_steps=2")
    settings, tokenizer = settings_of(config, tmp_path), load_tokenizer(config.model)
    ends = end_tokens(config.model, tokenizer)
    reward = spawned(config, write_rows(tmp_path, "train", ROWS), tmp_path / "rollouts", "run", 8, ends)
    worker, weights = Worker(failed("UserError: task.verify: 24 of 24 have no verdict")), Weights()
    trainer = build_trainer(config, settings, tokenizer, ROWS, reward, rollout_worker=worker, weight_transfer=weights)
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_A.default." in name or ".lora_B.default." in name for name in trained)
    assert trainer.model.config._attn_implementation == "tree_fa3"
    assert trainer.model.dtype == torch.float32
    assert sorted(trainer.eos_token_ids) == sorted(ends)
    assert trainer.args.max_inflight_tasks == 4 * 32 * 4  # staleness, micro-batch, accumulation
    logged: list[Mapping[str, float]] = []
    with pytest.raises(UserError, match=r"^task.verify: 24 of 24 have no verdict$"):
        train(trainer, lambda values, step: logged.append(values), {})
    assert worker.told == ["version 1", "start", "stop"]
    published = dict(trainer.model.get_base_model().named_parameters())
    assert "model.layers.0.self_attn.q_proj.weight" in weights.sent
    assert torch.equal(weights.sent["model.embed_tokens.weight"], published["model.embed_tokens.weight"])
    worker.error = failed("ValueError: else")
    with pytest.raises(RuntimeError, match="Rollout worker child has failed"):
        train(trainer, lambda values, step: logged.append(values), {})


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["adapter=p_tuning"], "adapter: grpo trains lora and ia3 adapters, not p_tuning"),
        (["adapter=pissa"], "adapter.peft.init_lora_weights: pissa"),
        (["model.architecture=LlamaForCausalLM"], "model.architecture: expected LlamaForCausalLM"),
    ],
)
def test_what_it_cannot_train_is_told_by_field(
    overrides: list[str], told: str, tmp_path: Path, small_model: Path
) -> None:
    config = configured(f"model.id={small_model}", *overrides)
    reward = spawned(config, tmp_path, tmp_path, "run", 8, [1])
    with pytest.raises(UserError, match=told):
        build_trainer(config, settings_of(config, tmp_path), None, ROWS, reward)


def test_stage_gets_as_far_as_the_server(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the check ahead left out, the stage reads rows, loads the base, attaches the adapter and asks for vLLM."""
    monkeypatch.setattr("pipelines.rewards.precheck.check", lambda config: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "none")
    nowhere = ["grpo.trainer.vllm_server_base_url=http://127.0.0.1:9", "+grpo.trainer.vllm_server_timeout=0.0"]
    assert world.run("prepare") == 0
    assert world.run("grpo", RECIPE, *nowhere) == 4
    told = capsys.readouterr()
    assert "prompts of at most" in told.out
    assert "grpo.trainer.vllm_server_base_url: Timed out after 0s waiting for vLLM" in told.err
    assert not list(world.folder.glob("adapters/*/manifest.json"))


class Kept:
    """A run that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Mapping[str, float]]] = []

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.told.append((step, values))

    def episodes(self, batch: Any, numbers: Sequence[int]) -> None: ...


def test_logs_raise_the_alarms_that_they_have_values_for() -> None:
    kept = Kept()
    watch = configured("grpo.watch.window=2", "grpo.watch.clipped.stop=true", "grpo.watch.kl.limit=1.0").grpo.watch
    log = Logged(watch, kept)
    log({"reward": 0.5, "kl": 50.0, "entropy": 1.0, "completions/clipped_ratio": 0.2}, 1)
    log({"reward": 0.5, "kl": 50.0, "entropy": 1.0, "completions/clipped_ratio": 0.4}, 2)
    with pytest.raises(Refused, match=r"step 3: clipped 0.65 is over its limit 0.5"):
        log({"reward": 0.5, "kl": 50.0, "entropy": 0.001, "completions/clipped_ratio": 0.9}, 3)
    step, values = kept.told[-1]
    assert (step, values["grpo/kl_to_sampler"], values["grpo/alarm/clipped"], values["grpo/alarm/entropy"]) == (
        3,
        50,
        1,
        0,
    )
    assert "grpo/kl" not in values
    # Distance from the sampler is no distance from the start: nothing is said of alarms that weren't watched.
    assert sorted(name for name in values if "alarm" in name) == [
        "grpo/alarm/clipped",
        "grpo/alarm/entropy",
        "grpo/alarm/length_growth",
    ]


class _Built(Exception):
    """The trainer would be made of these rows."""


class _Quiet:
    """A run that nothing is told to."""

    id = "run"

    def input(self, *_: Any) -> None: ...


def test_the_stage_asks_rows_in_the_order_of_their_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward, in a process of its own, knows a row by its line."""
    assert world.run("prepare") == 0
    (folder,) = (world.folder / "rows").glob("*-*")
    kept = [o for o in world.overrides() if not o.startswith(("adapter.", "sft."))]
    config = compose([RECIPE, *kept, "grpo.trainer.max_completion_length=8"]).config

    def build_trainer(*given: Any) -> None:
        raise _Built(given[3])

    monkeypatch.setattr("pipelines.policy.asynchronous.build_trainer", build_trainer)
    work = world.folder / "work"
    work.mkdir()
    with pytest.raises(_Built) as asked:
        grpo.run(config, {"rows": load(folder)}, work, cast(Any, _Quiet()))
    lines = read_rows(folder / "train.jsonl")
    assert [row.id for row in asked.value.args[0]] == [row.id for row in lines]
    lengths = [len(row.prompt[-1]["content"]) for row in lines]
    assert lengths != sorted(lengths)
