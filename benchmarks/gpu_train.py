"""A cell of supervised fine-tuning: tokens a second, share of the card's rate, memory."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from benchmarks.gpu_cells import WARM_UP, Call, Cell, rows_of
from benchmarks.gpu_clock import Clock
from benchmarks.gpu_settings import arguments, base, configuration, lora, tokenizer
from benchmarks.gpu_shapes import shape, work_of
from pipelines.policy.imitation import build_trainer
from pipelines.policy.mask import Example

TRL_BATCH, TRL_LENGTH = 32, 1024  # for GSM8K's rows, which TRL pads unless it is told to pack
Rows = list[dict[str, list[int]]]


def train(cell: Cell, side: str, call: Call, checkpointing: str, work: Path) -> dict[str, Any]:
    """Trains for the warm-up and the timed steps; what was measured."""
    model = base(cell, side, call)
    steps = WARM_UP + call.steps
    rows = _rows(cell, side, call, steps)
    settings = _settings(cell, side, call, checkpointing, work, steps)
    trainer = _ours(settings, model, rows) if side == "tunesmith" else _theirs(settings, model, rows, side)
    clock = Clock(call)
    clock.watch(trainer)
    trainer.train()
    figures = clock.figures()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    figures |= {"loss_first": losses[0], "loss_last": losses[-1], "trained_parameters": trained}
    return figures | _operations(cell, call, checkpointing, rows, trained, figures["tokens_per_s"][0])


def _settings(cell: Cell, side: str, call: Call, checkpointing: str, work: Path, steps: int) -> SFTConfig:
    length, batch = call.size(cell)
    made = arguments(side, call, checkpointing, work, steps) | {
        "max_length": length,
        "per_device_train_batch_size": batch,
    }
    if cell.gsm8k and side == "tunesmith":
        made |= {"packing": cell.packing} if cell.packing else {"train_sampling_strategy": "group_by_length"}
    elif cell.gsm8k:
        made |= {"max_length": min(length, TRL_LENGTH), "per_device_train_batch_size": _trl_batch(call)}
    return SFTConfig(**made)


def _trl_batch(call: Call) -> int:
    return 8 if call.tiny else TRL_BATCH


def _rows(cell: Cell, side: str, call: Call, steps: int) -> Rows:
    """Enough rows that no step sees one again."""
    _, batch = call.size(cell)
    vocabulary = len(tokenizer()) if call.tiny else shape(cell.shape).vocab_size
    packed = 64 if cell.packing and not call.tiny else 4  # more than fit into a sequence, of GSM8K's rows
    if cell.gsm8k:
        batch = max(batch * packed, _trl_batch(call))
    return rows_of(cell, call, vocabulary, steps * batch)


def _ours(settings: SFTConfig, model: Any, rows: Rows) -> SFTTrainer:
    examples = [Example(str(n), row["input_ids"], row["labels"], 0, True) for n, row in enumerate(rows)]
    return build_trainer(configuration(), settings, model, tokenizer(), {"train": examples}, "sft")


def _theirs(settings: SFTConfig, model: Any, rows: Rows, side: str) -> SFTTrainer:
    return SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=lora(side),
    )


def _operations(
    cell: Cell, call: Call, checkpointing: str, rows: Rows, trained: int, tokens_per_s: float
) -> dict[str, float]:
    """TFLOP/s of the model's own operations, and with what checkpointing computes again."""
    lengths = [len(row["input_ids"]) for row in rows]
    attended = sum(length**2 for length in lengths) / sum(lengths)
    work = work_of(shape(cell.shape, call.tiny), trained)
    needed = work.model_flops(attended)
    figures = {"flops_per_token": needed, "model_tflops": tokens_per_s * needed / 1e12}
    if checkpointing != "selective":  # what that computes again is torch's choice
        again = work.recomputed_flops(attended) if checkpointing == "full" else 0.0
        figures["hardware_tflops"] = tokens_per_s * (needed + again) / 1e12
    return figures
