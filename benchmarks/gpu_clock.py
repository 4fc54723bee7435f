"""Time and memory of training steps on a device that works on while Python goes ahead."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.gpu_cells import WARM_UP, Call

GIB = 2**30
SPANS = 10


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def now(device: str) -> float:
    """Seconds of a clock, when the device is done."""
    wait(device)
    return time.perf_counter()


class Clock(TrainerCallback):
    """The moment in which each step ended, its tokens without padding, and a stop at the call's deadline."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.begun = now(call.device)
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self._counted = 0

    def watch(self, trainer: Any) -> None:
        """Counts the tokens of every batch that the trainer takes a step on."""
        taken = trainer.training_step

        def training_step(model: Any, inputs: dict[str, Any], *further: Any) -> Any:
            self._counted += _tokens(inputs)
            return taken(model, inputs, *further)

        trainer.training_step = training_step
        trainer.add_callback(self)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begun = now(self.call.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.ends.append(now(self.call.device))
        self.tokens.append(self._counted)
        self._counted = 0
        if time.monotonic() > self.call.deadline:
            control.should_training_stop = True
        return control

    def figures(self) -> dict[str, Any]:
        """Medians over the steps behind the warm-up, with least and most. Raises TimeoutError where none is left."""
        seconds = [end - start for start, end in zip([self.begun, *self.ends], self.ends, strict=False)]
        timed, tokens = seconds[WARM_UP:], self.tokens[WARM_UP:]
        if not timed:
            raise TimeoutError("the call's time was over within the warm-up")
        rates = [count / taken for count, taken in zip(tokens, timed, strict=True)]
        return {
            "timed_steps": len(timed),
            "first_step_s": round(seconds[0], 3),
            "step_s": _rounded(timed, 4),
            "tokens_per_s": _rounded(rates, 1),
            "tokens_per_step": round(statistics.fmean(tokens)),
        }


def _rounded(values: list[float], digits: int) -> list[float]:
    """Median, least, most."""
    return [round(value, digits) for value in (statistics.median(values), min(values), max(values))]


def _tokens(inputs: Any) -> int:
    """Tokens that are no padding; a packed batch has none, and prompts that are to be answered aren't tokens yet."""
    if "input_ids" not in inputs:
        return 0
    mask = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel() if mask is None else mask.sum())


def forget(device: str) -> float:
    """Drops what earlier sides left; returns GiB that stay allocated, so that a peak can be judged."""
    import gc

    gc.collect()
    if device != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return round(torch.cuda.memory_allocated() / GIB, 3)


def peaks(device: str) -> dict[str, float | None]:
    """Most memory that tensors held, and that PyTorch held for them, since `forget`."""
    if device != "cuda":
        return {"peak_allocated_gib": None, "peak_reserved_gib": None}
    return {
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def matrix_rate(call: Call) -> float:
    """TFLOP/s of a bf16 matrix product on random data, the median of ten: the most that the card can do."""
    side = 256 if call.tiny else 8192
    left, right = (torch.randn(side, side, dtype=torch.bfloat16, device=call.device) for _ in range(2))
    for _ in range(WARM_UP):
        left @ right
    seconds = statistics.median(_timed(lambda: left @ right, call.device) for _ in range(SPANS))
    return round(2 * side**3 / seconds / 1e12, 3)


def _timed(action: Callable[[], Any], device: str) -> float:
    begun = now(device)
    action()
    return now(device) - begun
