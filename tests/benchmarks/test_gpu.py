"""The GPU benchmark's code at toy size on a CPU: every kind of cell, the shapes, and the table."""

import math
import time
from pathlib import Path
from statistics import fmean

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_cells import CELLS, WARM_UP, Call, rows_of
from benchmarks.gpu_shapes import SHAPES, nf4, random_model, shape, work_of
from benchmarks.gpu_table import read, table

PUBLISHED = {  # parameters, as the models' own weights add up to
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b": 70_553_706_496,
}

pytestmark = pytest.mark.usefixtures("one_thread")


def call(steps: int = 1, seconds: float = 600.0) -> Call:
    return Call("cpu", True, steps, "sdpa", time.monotonic() + seconds)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_the_published_models(name: str) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape(name))
    assert model.num_parameters() == PUBLISHED[name]


def test_a_tied_head_is_multiplied_with_and_its_embedding_is_not() -> None:
    work = work_of(shape("qwen3-0.6b"), 1000)
    assert work.head == 151936 * 1024
    assert work.body == 28 * (1024 * 128 * (16 + 8 + 8 + 16) + 3 * 1024 * 3072)
    assert work.model_flops(4096) == 4 * (work.body + work.head) + 6000 + 6 * 28 * 2048 * 4096


def test_a_base_in_four_bits_is_the_one_in_sixteen_nearly() -> None:
    config = shape("llama-3.3-70b", toy=True)
    ids = torch.arange(10, 40)[None]
    logits = []
    for quantization in (None, nf4(torch.float32, double=True)):
        torch.manual_seed(0)
        model = random_model(config, torch.float32, "cpu", "sdpa", quantization)
        model.eval()
        logits.append(model(input_ids=ids).logits)
    assert logits[0].std() > 0
    assert 0 < (logits[0] - logits[1]).norm() < 0.3 * logits[0].norm()


@pytest.mark.parametrize(
    ("cell", "side"),
    [
        ("llama-3.1-8b-lora", "tunesmith"),
        ("qwen2.5-7b-lora", "trl"),
        ("70b-qlora", "tunesmith"),
        ("qwen3-8b-qlora", "trl_bf16"),
        ("gsm8k-padded", "tunesmith"),
        ("gsm8k-packed", "tunesmith"),
        ("gsm8k-packed", "trl"),
    ],
)
def test_a_training_cell_learns_and_counts(cell: str, side: str) -> None:
    found = gpu.measure(CELLS[cell], side, call())
    assert found["timed_steps"] == 1
    assert math.log(3072) - 0.5 < found["loss_first"] < math.log(3200) + 0.5
    least, most = found["tokens_per_s"][1:]
    assert 0 < least <= found["tokens_per_s"][0] <= most
    assert found["checkpointing"] == ("off" if side == "tunesmith" else "full")
    assert found["hardware_tflops"] >= found["model_tflops"] > 0


def test_a_packed_step_holds_no_padding_and_a_padded_one_is_counted_without() -> None:
    cell = CELLS["gsm8k-packed"]
    packed, padded = (gpu.measure(cell, side, call(steps=4)) for side in ("tunesmith", "trl"))
    lengths = [len(row["input_ids"]) for row in rows_of(cell, call(), 3072, 200)]
    assert 1.8 * 64 < packed["tokens_per_step"] <= 2 * 64
    assert padded["tokens_per_step"] == pytest.approx(8 * fmean(lengths), rel=0.15)


def test_the_parts_of_a_grpo_step_add_up_to_it() -> None:
    found = gpu.measure(CELLS["grpo"], "tunesmith", call())
    split = found["split_s"]
    assert all(split[part] > 0 for part in ("generation", "rewards", "scoring", "loss", "optimizer"))
    assert sum(split.values()) == pytest.approx(found["step_s"][0], rel=0.2)


def test_a_merged_adapter_answers_as_the_loaded_one() -> None:
    found = gpu.measure(CELLS["adapter"], "peft", call())
    assert found["merge_relative_change"] < 0.05
    assert found["adapter_mb"] > 0


def test_no_step_is_begun_behind_the_deadline() -> None:
    found = gpu.measure(CELLS["qwen3-0.6b-lora"], "trl", call(steps=10, seconds=-1))
    assert "warm-up" in found["error"]
    assert WARM_UP > 1


def test_calls_add_up_to_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.jsonl"
    words = ["qwen3-0.6b-lora", "--device", "cpu", "--tiny", "--steps", "1", "--out", str(out)]
    gpu.main([*words, "--sides", "trl"])
    gpu.main([*words, "--sides", "trl,tunesmith"])
    assert [record["side"] for record in read(out)] == ["trl", "tunesmith"], "what is there was measured again"
    capsys.readouterr()
    gpu.main(["--table", "--out", str(out)])
    shown = capsys.readouterr().out
    assert shown.strip() == table(read(out))
    ours = next(line for line in shown.splitlines() if "| tunesmith |" in line)
    rates = {record["side"]: record["tokens_per_s"][0] for record in read(out)}
    assert f"| {rates['tunesmith'] / rates['trl']:.2f} |" in ours


def test_an_unknown_cell_is_named() -> None:
    with pytest.raises(SystemExit, match="no cell 'qwen9'"):
        gpu.main(["qwen9"])
