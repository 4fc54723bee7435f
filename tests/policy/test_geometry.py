"""A step is the same rows and the same loss, however it is divided into micro-batches and over processes."""

import itertools
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.compute_equivalence import ON_TWO, build, config_of, losses, losses_of_two, measure
from pipelines.policy.fit import Course, fit
from pipelines.policy.geometry import BLANK, Shared, rows_of_step, with_blanks
from pipelines.policy.on_policy import LikeLength

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 43
LENGTHS = [number * 7 % 31 + 3 for number in range(COUNT)]
EQUAL = 1e-5


def steps_over(order: list[int], micro: int, accumulation: int, processes: int) -> list[set[int]]:
    """The rows of each step, as accelerate shares out the micro-batches of an order."""
    shared = Shared(SequentialSampler(order), COUNT, micro * processes)
    places = list(shared)
    assert len(places) == len(shared)
    rows = [order[place] if place < COUNT else BLANK for place in places]
    batches = BatchSampler(rows, micro, drop_last=False)
    shards = [list(BatchSamplerShard(batches, processes, process)) for process in range(processes)]
    assert len({len(shard) for shard in shards}) == 1
    assert sorted(row for shard in shards for batch in shard for row in batch if row != BLANK) == list(range(COUNT))
    found = []
    for begin in range(0, len(shards[0]), accumulation):
        parts = [batch for shard in shards for batch in shard[begin : begin + accumulation]]
        found.append({row for batch in parts for row in batch} - {BLANK})
    return found


def test_processes_and_micro_batches_take_the_same_rows_a_step() -> None:
    order = list(LengthGroupedSampler(24, lengths=LENGTHS, generator=torch.Generator().manual_seed(0)))
    expected = steps_over(order, 24, 1, 1)
    assert [len(step) for step in expected] == [24, 19]
    divided = [(m, a, p) for m, a, p in itertools.product((1, 2, 3, 4, 6, 8, 12, 24), repeat=3) if m * a * p == 24]
    assert len(divided) > 20
    for micro, accumulation, processes in divided:
        assert steps_over(order, micro, accumulation, processes) == expected, (micro, accumulation, processes)


def test_prompts_of_a_step_are_the_same_too() -> None:
    """A generation's rows come once for each micro-batch; each process takes a part of them."""

    def of(micro: int, accumulation: int, processes: int) -> list[set[int]]:
        order = LikeLength(LENGTHS, micro * accumulation * processes, accumulation, 3)
        batches = BatchSampler(order, micro * accumulation, drop_last=False)
        shards = [list(BatchSamplerShard(batches, processes, process)) for process in range(processes)]
        starts = range(0, len(shards[0]), accumulation)
        return [{row for shard in shards for row in shard[start]} for start in starts]

    expected = of(8, 1, 1)
    for micro, accumulation, processes in ((4, 2, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2), (1, 2, 4)):
        assert of(micro, accumulation, processes) == expected


def test_blank_rows_fill_a_round_and_teach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 3, "labels": [[-100, 6, 7]] * 3, "row": [0, 1, 2]})
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True)
    assert with_blanks(rows, args, 0) is rows
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    found = with_blanks(rows, args, 0)
    assert len(found) == 3 + 7
    assert rows_of_step(args) == 16
    assert {label for labels in found[3:]["labels"] for label in labels} == {-100}
    assert set(found[3:]["row"]) == {BLANK}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["sft.trainer.packing=true", "sft.trainer.max_length=70", "sft.trainer.train_sampling_strategy=random"],
    ],
)
def test_losses_are_the_same_in_any_micro_batch(small_model: Path, tmp_path: Path, overrides: list[str]) -> None:
    found = measure(tmp_path, f"model.id={small_model}", *overrides, two=False)
    assert 0 < found["equivalence_max_diff"] < EQUAL


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_losses_are_the_same_on_two_processes(small_model: Path, tmp_path: Path, strategy: str) -> None:
    overrides = [f"model.id={small_model}", f"sft.trainer.train_sampling_strategy={strategy}"]
    one = losses(tmp_path, 8, 1, overrides)
    for micro, accumulation in ON_TWO[1:2]:
        assert losses_of_two(tmp_path, micro, accumulation, overrides) == pytest.approx(one, abs=EQUAL)


def test_a_part_of_the_layers_is_checkpointed(small_model: Path, tmp_path: Path) -> None:
    """What the plan chooses where memory is short: the same losses, less kept."""
    kwargs = "+sft.trainer.gradient_checkpointing_kwargs={every_n_layers:2}"
    part = ("sft.trainer.gradient_checkpointing=true", kwargs)
    trainer = build(config_of(4, 2, ["sft.trainer.max_steps=3", f"model.id={small_model}", *part]), tmp_path)
    history = fit(trainer, lambda values, step: None, Course(8, {})).history
    layers = trainer.model.get_base_model().model.layers
    assert [layer.gradient_checkpointing for layer in layers] == [number % 2 == 0 for number in range(len(layers))]
    plain = losses(tmp_path, 4, 2, ["sft.trainer.max_steps=3", f"model.id={small_model}"])
    assert [entry["loss"] for entry in history if "loss" in entry] == plain
