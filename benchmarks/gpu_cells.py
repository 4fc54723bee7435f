"""What is measured on a GPU: the cells, the sides of each, and what a call is asked for."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.config.paths import PROJECT

Kind = Literal["sft", "grpo", "adapter"]
RANK = 16
TINY = 64  # tokens of a sequence where only the code is tried
WARM_UP = 3  # steps before the timed ones
TRL = ("trl", "trl_bf16")
LENGTHS = Path(__file__).parent / "gsm8k_lengths.txt"


@dataclass(frozen=True)
class Cell:
    """A model's shape and a batch: `batch` sequences of `length` tokens, or rows of GSM8K's lengths.

    `target` is the least tokens a second to be reached on a card whose bf16 matrix rate is 790 TFLOP/s.
    """

    name: str
    kind: Kind
    shape: str
    length: int
    batch: int
    quantized: bool = False
    gsm8k: bool = False
    packing: bool = False
    target: int | None = None

    @property
    def sides(self) -> tuple[str, ...]:
        """Who is measured: nobody but peft loads and merges adapters."""
        return ("peft",) if self.kind == "adapter" else ("tunesmith", *TRL)


CELLS = {
    cell.name: cell
    for cell in (
        Cell("qwen3-0.6b-lora", "sft", "qwen3-0.6b", 4096, 2),
        Cell("qwen3-4b-lora", "sft", "qwen3-4b", 4096, 2),
        Cell("llama-3.1-8b-lora", "sft", "llama-3.1-8b", 4096, 2, target=12_000),
        Cell("qwen2.5-7b-lora", "sft", "qwen2.5-7b", 4096, 2, target=13_000),
        Cell("qwen3-8b-lora", "sft", "qwen3-8b", 4096, 2),
        Cell("qwen3-8b-qlora", "sft", "qwen3-8b", 4096, 2, quantized=True),
        Cell("70b-qlora", "sft", "llama-3.3-70b", 4096, 1, quantized=True),
        Cell("gsm8k-padded", "sft", "qwen3-4b", 1024, 32, gsm8k=True),
        Cell("gsm8k-packed", "sft", "qwen3-4b", 4096, 2, gsm8k=True, packing=True),
        Cell("grpo", "grpo", "qwen3-0.6b", 256, 64),
        Cell("adapter", "adapter", "llama-3.1-8b", 0, 0),
    )
}


@dataclass(frozen=True)
class Call:
    """How a call measures: `deadline` is a `time.monotonic()` after which no timed step begins."""

    device: Literal["cuda", "cpu"]
    tiny: bool
    steps: int
    attention: str
    deadline: float

    def size(self, cell: Cell) -> tuple[int, int]:
        """Length and batch, small where only the code is tried."""
        return (min(cell.length, TINY), min(cell.batch, 8)) if self.tiny else (cell.length, cell.batch)


def rows_of(cell: Cell, call: Call, vocabulary: int, count: int) -> list[dict[str, list[int]]]:
    """`count` rows of random tokens, `input_ids` and `labels` each: all are trained, of GSM8K only the answers."""
    chance = random.Random(0)
    length, _ = call.size(cell)
    rows = []
    for prompt, answer in _lengths(chance, count, length) if cell.gsm8k else [(0, length)] * count:
        ids = [chance.randrange(10, vocabulary) for _ in range(prompt + answer)]
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def _lengths(chance: random.Random, count: int, longest: int) -> list[tuple[int, int]]:
    lines = LENGTHS.read_text(encoding="utf-8").splitlines()
    found = [tuple(map(int, line.split())) for line in lines]
    chosen = [chance.choice(found) for _ in range(count)]
    divided = 8 if longest <= TINY else 1
    return [(min(prompt // divided, longest // 2), min(answer // divided, longest // 2)) for prompt, answer in chosen]


def questions(count: int) -> list[str]:
    """Questions of GSM8K's training rows."""
    lines = (PROJECT / "data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines[:count]]
