"""Two processes on the CPU, for real: every strategy trains the same adapter."""

from pathlib import Path

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


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory, prepared: World) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("supervised")
    cases = [Case("one", "sft", sft(prepared, "ddp", 1), str(folder / "one"), num_ranks=1)]
    cases += [Case(name, "sft", sft(prepared, name, 2), str(folder / name)) for name in STRATEGIES]
    run(cases, folder)
    return {case.name: Path(case.work) for case in cases}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_supervised_adapters_are_those_of_one_process(supervised: dict[str, Path], strategy: str) -> None:
    assert (
        max(float(value.abs().max()) for name, value in weights(supervised["one"]).items() if "lora_B" in name) > 1e-4
    )
    assert furthest(supervised["one"], supervised[strategy]) < NEAR
