"""The memory plan's peak of each GPU cell, written down beforehand so that no figure can have shaped it."""

import importlib
import json
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_cells import LENGTHS, RANK, Cell

FILE = Path(__file__).parent / "gpu_predicted.json"
CHECKPOINTING = {"tunesmith": ("off", "full"), "trl_bf16": ("full",)}


def predicted(cell: Cell, side: str, checkpointing: str) -> float | None:
    """The plan's peak in GiB, as torch's allocator counts; None where it wasn't asked, or has none for such a side."""
    return _written().get(_key(cell, side, checkpointing)) if FILE.exists() else None


@cache
def _written() -> dict[str, float]:
    found: dict[str, float] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def _key(cell: Cell, side: str, checkpointing: str) -> str:
    return f"{cell.name} {side} {checkpointing}"


def write(cells: Sequence[Cell]) -> None:
    """Asks the plan about the cells that train on rows. It knows no float32 under autocast, which is `trl`'s side."""
    if find_spec("pipelines.planning") is None:
        sys.exit("this tree has no pipelines.planning to ask")
    made = {}
    for cell in cells:
        if cell.kind == "sft":
            for side, settings in CHECKPOINTING.items():
                for checkpointing in settings:
                    key = _key(cell, side, checkpointing)
                    made[key] = round(_peak(cell, side, checkpointing), 2)
                    print(f"{key:<40} {made[key]:8.2f} GiB", flush=True)
    kept = _written() if FILE.exists() else {}
    FILE.write_text(json.dumps(kept | made, indent=1) + "\n", encoding="utf-8")


def _peak(cell: Cell, side: str, checkpointing: str) -> float:
    from pipelines.config.block import Quantization

    memory = importlib.import_module("pipelines.planning.memory")
    quantization = Quantization(
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=side == "tunesmith",
        bnb_4bit_compute_dtype="bfloat16",
        experts=False,
    )
    batch, length = _batch(cell, side)
    job = memory.Job(
        micro_batch=batch,
        length=length,
        checkpointing=checkpointing == "full",
        quantization=quantization if cell.quantized else None,
        masked=cell.gsm8k,
    )
    return float(memory.predict(_facts(cell.shape, cell.quantized), job).allocated / memory.GIB)


@cache
def _facts(shape_name: str, quantized: bool) -> Any:
    """Counts and activations of a shape, computed from the real model's code."""
    from benchmarks.gpu_settings import configuration
    from benchmarks.gpu_shapes import shape
    from pipelines.config.block import Quantization

    config, settings = configuration(), shape(shape_name).to_diff_dict()
    settings["architecture"] = f"{type(shape(shape_name)).__name__.removesuffix('Config')}ForCausalLM"
    adapter = config.adapter
    if adapter.peft["r"] != RANK:
        raise RuntimeError("the plan is asked about another adapter than the one that is measured")
    if quantized:
        nf4 = Quantization(
            bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16", experts=False
        )
        adapter = adapter.model_copy(update={"quantization": nf4})
    model = config.model.model_copy(update={"architecture": settings["architecture"]})
    return importlib.import_module("pipelines.planning.computed").computed_facts(settings, model, adapter)


def _batch(cell: Cell, side: str) -> tuple[int, int]:
    """Sequences of a micro-batch and their length; of padded rows GSM8K's longest, with which some batch is filled."""
    if not cell.gsm8k or (cell.packing and side == "tunesmith"):
        return cell.batch, cell.length
    return 32, max(sum(map(int, line.split())) for line in LENGTHS.read_text(encoding="utf-8").splitlines())
