"""Two processes on the CPU, for real: every strategy trains the same adapter, and goes on from a checkpoint exactly."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.compute.forked import Case, run
from tests.conftest import World

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
NEAR = 1e-5


def sft(world: World, strategy: str, num_ranks: int, *further: str) -> list[str]:
    """Overrides of a training whose step has eight rows, whoever shares them."""
    return [
        *world.overrides(),
        f"sft.rows={world.product('rows')}",
        f"strategy={strategy}",
        f"compute.num_processes={num_ranks}",
        f"sft.trainer.per_device_train_batch_size={8 // num_ranks}",
        "sft.trainer.per_device_eval_batch_size=16",
        "sft.trainer.eval_steps=3",
        "sft.trainer.save_steps=3",
        "compute.rendezvous.timeout_s=60",
        *further,
    ]


def weights(work: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(work / "adapter_model.safetensors")
    return found


def furthest(one: Path, other: Path) -> float:
    """The largest difference of two adapters of the same names and shapes."""
    left, right = weights(one), weights(other)
    assert {name: value.shape for name, value in left.items()} == {name: value.shape for name, value in right.items()}
    return max(float((left[name].float() - right[name].float()).abs().max()) for name in left)


DROPPED = {"zero2": "strategy zero2, got MULTI_CPU", "fsdp2": "strategy fsdp2, got MULTI_CPU"}


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory, prepared: World) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("supervised")
    cases = [Case("one", "sft", sft(prepared, "ddp", 1), str(folder / "one"), num_ranks=1)]
    cases += [Case(name, "sft", sft(prepared, name, 2), str(folder / name)) for name in STRATEGIES]
    for name in DROPPED:
        cases.append(Case(f"dropped {name}", "sft", sft(prepared, name, 2), str(folder / f"dropped_{name}"), drop=name))
    found = run(cases, folder)
    for name, told in DROPPED.items():
        assert found[f"dropped {name}"].said.count(told) == 2, found[f"dropped {name}"].said
    return {case.name: Path(case.work) for case in cases}


@pytest.mark.parametrize("strategy", DROPPED)
def test_a_strategy_that_was_dropped_is_refused(supervised: dict[str, Path], strategy: str) -> None:
    """What the ranks say of it is looked at where they are run."""
    assert not (supervised[f"dropped {strategy}"] / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_supervised_adapters_are_those_of_one_process(supervised: dict[str, Path], strategy: str) -> None:
    assert (
        max(float(value.abs().max()) for name, value in weights(supervised["one"]).items() if "lora_B" in name) > 1e-4
    )
    assert furthest(supervised["one"], supervised[strategy]) < NEAR


LIVE = ("ddp", "zero2", "zero3", "fsdp2")


def live(world: World, stage: str, strategy: str) -> list[str]:
    """Overrides of a training by what the model itself says."""
    return [
        *world.overrides(),
        f"{stage}.rows={world.product('rows')}",
        f"{stage}.start=base",
        f"strategy={strategy}",
        "compute.num_processes=2",
        "compute.rendezvous.timeout_s=60",
        f"{stage}.trainer.max_steps=2",
        f"{stage}.trainer.save_steps=1",
        f"{stage}.trainer.logging_steps=1",
        f"{stage}.trainer.gradient_accumulation_steps=1",
        f"{stage}.trainer.per_device_train_batch_size=4",
        f"{stage}.trainer.max_completion_length=6",
        f"{stage}.trainer.lr_scheduler_type=constant",
    ]


def rewarded(world: World, strategy: str) -> list[str]:
    # Differs from answer to answer, whatever they say.
    shaped = ["grpo.rewards.language.weight=0.9", "grpo.rewards.language.language=en", "verifier.workers=1"]
    return [*live(world, "grpo", strategy), "grpo.trainer.num_generations=4", *shaped]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """The small model with other weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(small_model)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(small_model).save_pretrained(folder)
    return folder


def taught(world: World, strategy: str, teacher: Path) -> list[str]:
    license = "teacher.license={id: MIT, conditions: null, url: null}"
    return [*live(world, "distill", strategy), "teacher.kind=model", f"teacher.at={teacher}", license]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, prepared: World, other_model: Path) -> dict[str, Path]:
    """Adapters by `stage strategy`."""
    folder = tmp_path_factory.mktemp("learnt")
    cases = [Case(f"grpo {name}", "grpo", rewarded(prepared, name), str(folder / f"grpo_{name}")) for name in LIVE]
    for name in LIVE:
        overrides = taught(prepared, name, other_model)
        cases.append(Case(f"distill {name}", "distill", overrides, str(folder / f"distill_{name}")))
    run(cases, folder)
    return {case.name: Path(case.work) for case in cases}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", LIVE[1:])
@pytest.mark.parametrize("stage", ["grpo", "distill"])
def test_what_is_learnt_from_own_answers_is_the_same(learnt: dict[str, Path], stage: str, strategy: str) -> None:
    plain = weights(learnt[f"{stage} ddp"])
    assert max(float(value.abs().max()) for name, value in plain.items() if "lora_B" in name) > 1e-4
    assert furthest(learnt[f"{stage} ddp"], learnt[f"{stage} {strategy}"]) < NEAR


@pytest.mark.slow
def test_rollouts_of_all_ranks_are_kept(learnt: dict[str, Path]) -> None:
    table: list[dict[str, Any]] = pq.read_table(learnt["grpo ddp"] / "rollouts.parquet").to_pylist()
    assert [(row["step"], row["group"], row["sample"]) for row in table] == [
        (step, group, sample) for step in (1, 2) for group in (0, 1) for sample in range(4)
    ]
    assert len({row["row_id"] for row in table}) == 4


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, prepared: World) -> dict[str, Path]:
    """Trainings that were killed behind a checkpoint and started again, by strategy."""
    folder = tmp_path_factory.mktemp("resumed")
    cases = []
    for name in STRATEGIES:
        work = str(folder / name)
        cases.append(Case(f"killed {name}", "sft", sft(prepared, name, 2), work, kill_at=4))
        cases.append(Case(f"resumed {name}", "sft", sft(prepared, name, 2), work))
    found = run(cases, folder)
    for name in STRATEGIES:
        assert "going on from step 3" in found[f"resumed {name}"].said
    return {name: folder / name for name in STRATEGIES}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_training_is_the_uninterrupted_one(
    resumed: dict[str, Path], supervised: dict[str, Path], strategy: str
) -> None:
    assert furthest(supervised[strategy], resumed[strategy]) == 0


QUANTIZED = ("ddp", "zero2", "zero3", "fsdp2")
HALF = 2.0**-8  # bfloat16's: TRL keeps an adapter over a 4-bit base in it


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, prepared: World) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    four_bit = ("adapter=qlora", "adapter.quantization.bnb_4bit_compute_dtype=float32")
    cases = [Case(name, "sft", sft(prepared, name, 2, *four_bit), str(folder / name)) for name in QUANTIZED]
    run(cases, folder)
    return {case.name: Path(case.work) for case in cases}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", QUANTIZED[1:])
def test_adapters_over_four_bits_are_the_same(quantized: dict[str, Path], strategy: str) -> None:
    """To bfloat16's rounding, of which DeepSpeed's float32 copy of the adapter has less."""
    for kind in ("lora_A", "lora_B"):
        plain, other = (flat(weights(quantized[name]), kind) for name in ("ddp", strategy))
        assert plain.abs().max() > 1e-4
        assert (plain - other).norm() < 2 * HALF * plain.norm()


def flat(adapter: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    return torch.cat([value.float().flatten() for name, value in sorted(adapter.items()) if kind in name])


AGAIN = ("zero2", "fsdp2")


@pytest.fixture(scope="module")
def learnt_again(tmp_path_factory: pytest.TempPathFactory, prepared: World, other_model: Path) -> dict[str, Path]:
    """Trainings from own answers that were killed behind their first step and started again, by `stage strategy`."""
    folder = tmp_path_factory.mktemp("learnt_again")
    cases, places = [], {}
    for name in AGAIN:
        for stage, overrides in (("grpo", rewarded(prepared, name)), ("distill", taught(prepared, name, other_model))):
            work = folder / f"{stage}_{name}"
            places[f"{stage} {name}"] = work
            cases.append(Case(f"killed {stage} {name}", stage, overrides, str(work), kill_at=1))
            cases.append(Case(f"resumed {stage} {name}", stage, overrides, str(work)))
    found = run(cases, folder)
    for name in places:
        assert "going on from step 1" in found[f"resumed {name}"].said
    return places


@pytest.mark.slow
@pytest.mark.parametrize("strategy", AGAIN)
@pytest.mark.parametrize("stage", ["grpo", "distill"])
def test_learning_from_own_answers_goes_on_exactly(
    learnt: dict[str, Path], learnt_again: dict[str, Path], stage: str, strategy: str
) -> None:
    assert furthest(learnt[f"{stage} {strategy}"], learnt_again[f"{stage} {strategy}"]) == 0
