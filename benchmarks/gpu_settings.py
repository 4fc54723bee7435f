"""The two ways to train that are compared: tunesmith's own trainers, and TRL's with its commands' defaults."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.gpu_cells import RANK, Call, Cell
from benchmarks.gpu_shapes import nf4, random_model, shape
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Adapter, Config, Model, Optimizer
from pipelines.policy.adapter import keep_differentiable

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRL_DROPOUT = 0.05  # of `trl sft --use_peft`


def dtype_of(side: str) -> torch.dtype:
    """`trl sft` loads float32 unless it is told otherwise, and computes in bfloat16 by autocast."""
    return torch.float32 if side == "trl" else torch.bfloat16


def base(cell: Cell, side: str, call: Call) -> Any:
    """The random base as the side would load it."""
    dtype, ours = dtype_of(side), side == "tunesmith"
    quantization = nf4(dtype, double=ours) if cell.quantized else None
    attention = call.attention if ours else "sdpa"
    torch.manual_seed(0)
    model = random_model(shape(cell.shape, call.tiny), dtype, call.device, attention, quantization)
    model.config.pad_token_id = tokenizer().pad_token_id
    keep_differentiable(model)
    return model


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """The shipped one: trainers want some; its tokens are in the vocabulary of every shape."""
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")
    return made


def lora(side: str) -> LoraConfig:
    """The adapter of both sides, on every projection; dropout as each has it."""
    return LoraConfig(task_type="CAUSAL_LM", **_peft(0.0 if side in ("tunesmith", "peft") else TRL_DROPOUT))


def _peft(dropout: float) -> dict[str, Any]:
    return {"r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": dropout, "bias": "none", "target_modules": TARGETS}


def configuration() -> Config:
    """The blocks that tunesmith's trainers read; composing them all would need Hydra, which a CUDA image lacks."""
    profile, optimizer = (
        yaml.safe_load((PROJECT / f"conf/{name}.yaml").read_text(encoding="utf-8"))
        for name in ("model/tiny", "optimizer/adamw")
    )
    adapter = Adapter(
        name="lora",
        method="lora",
        train_experts=False,
        train_shared_experts=False,
        train_router=False,
        quantization=None,
        peft=_peft(0.0),
    )
    return Config.model_construct(
        model=Model.model_validate(profile), adapter=adapter, optimizer=Optimizer.model_validate(optimizer)
    )


def arguments(side: str, call: Call, checkpointing: str, work: Path, steps: int) -> dict[str, Any]:
    """Training arguments that both sides share, and each side's checkpointing; all others stay what TRL sets."""
    made: dict[str, Any] = {
        "output_dir": str(work / "checkpoints"),
        "seed": 0,
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": call.device == "cpu",
        "bf16": call.device == "cuda",
        "gradient_checkpointing": checkpointing != "off",
    }
    if checkpointing == "selective":
        made["gradient_checkpointing_kwargs"] = {"selective": True}
    return made


def checkpointings(side: str, cell: Cell) -> tuple[str, ...]:
    """What the side tries in turn, until one fits: TRL has one setting. What is recomputed costs time."""
    if side != "tunesmith":
        return ("full",)
    return ("off",) if cell.kind == "grpo" else ("off", "selective", "full")
