"""Memory that runs out in the first steps: the same steps in smaller micro-batches, from their start.

After accelerate's `find_executable_batch_size`, which halves the batch and with it changes what is trained: here as
many rows make a step as before, in the same order.
"""

import contextlib
import gc
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.progress import say

FIRST_STEPS = 10  # later ones ran out of memory although as many fitted: smaller micro-batches are the user's to choose
FOUND = "micro_batch.json"  # beside the checkpoints, so that a restart begins with what fitted
MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"

Made = dict[str, Any]


class TooLarge(UserError):
    """Memory ran out in training; `first` where that was in the first steps of a run."""

    def __init__(self, step: int, first: bool, evaluating: bool) -> None:
        what = "evaluation after step" if evaluating else "step"
        super().__init__(
            f"out of memory in {what} {step}; lower {'per_device_eval_batch_size' if evaluating else MICRO}"
        )
        self.step, self.first, self.evaluating = step, first, evaluating


@contextlib.contextmanager
def told_if_too_large(trainer: Any, start: int) -> Iterator[None]:
    """Raises TooLarge where memory runs out; `start` is the step that training began at."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        step = trainer.state.global_step + 1
        alone = trainer.accelerator.num_processes == 1
        evaluating = "evaluation_loop" in _functions(error.__traceback__)
        raise TooLarge(step, alone and start == 0 and step <= FIRST_STEPS and not evaluating, evaluating) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's or this machine's memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, Exception) and (should_reduce_batch_size(error) or "error: out of memory" in str(error))


def smaller_until_it_fits(
    config: Config, block: str, work: Path, attempt: Callable[[Config], Made], tell: Callable[[Mapping[str, str]], None]
) -> Made:
    """What `attempt` makes of the configuration, with as small a micro-batch as memory asks for.

    `block` is sft, distill or grpo; `work` its folder, `tell` the run's tags. What is returned has `micro_batch` where
    it isn't the configuration's. Raises UserError where a micro-batch of one row doesn't fit, naming what needs less.
    """
    asked = getattr(config, block).trainer
    if (work / FOUND).exists():
        config = config.with_trainer(block, json.loads((work / FOUND).read_text(encoding="utf-8")))
    while True:
        try:
            made = attempt(config)
            break
        except TooLarge as error:
            # Neither the trainer nor its batches may live on in a traceback.
            step, evaluating, again = error.step, error.evaluating, error.first
        trainer = getattr(config, block).trainer
        less = smaller(trainer) if again else None
        if less is None:
            raise UserError(what_fits(config, block, step, evaluating, again))
        release()
        config = config.with_trainer(block, less)
        _begin_anew(work, less)
        told = f"{trainer[MICRO]} rows at once, {less[MICRO]} x {less[ACCUMULATION]} instead"
        say(f"  out of memory at step {step} with {told}; the same steps, from their start")
        tell({"micro_batch": told})
    (work / FOUND).unlink(missing_ok=True)  # no part of the product
    trained = getattr(config, block).trainer
    if trained[MICRO] == asked[MICRO]:
        return made
    sizes = {name: {"asked": asked[name], "trained": trained[name]} for name in (MICRO, ACCUMULATION)}
    return made | {"micro_batch": sizes}


def smaller(trainer: Mapping[str, Any]) -> dict[str, int] | None:
    """Settings for at most half as many rows at once, as many in a step and in a generation; None where one is."""
    micro, accumulation = trainer[MICRO], trainer[ACCUMULATION]
    per_generation = trainer.get("steps_per_generation")
    for size in range(micro // 2, 0, -1):
        if micro * accumulation % size == 0 and micro * (per_generation or size) % size == 0:
            changed = {MICRO: size, ACCUMULATION: micro * accumulation // size}
            return changed | ({"steps_per_generation": micro * per_generation // size} if per_generation else {})
    return None


def what_fits(config: Config, block: str, step: int, evaluating: bool, first: bool) -> str:
    """The message for memory that ran out for good."""
    trainer, field = getattr(config, block).trainer, f"{block}.trainer"
    if evaluating:
        return f"{field}.per_device_eval_batch_size: out of memory in the evaluation after step {step}; lower it"
    ways = []
    if trainer[MICRO] > 1:
        ways.append(f"{field}.{MICRO}={(smaller(trainer) or trainer)[MICRO]} with {field}.{ACCUMULATION} to match")
    ways += [
        f"a lower {field}.{name} (now {trainer[name]})"
        for name in ("max_length", "max_completion_length")
        if trainer.get(name)
    ]
    if not trainer.get("gradient_checkpointing"):
        ways.append(f"{field}.gradient_checkpointing=true")
    if config.adapter.quantization is None:
        ways.append("adapter=qlora")
    where = "with a micro-batch of one row" if trainer[MICRO] == 1 else f"with {trainer[MICRO]} rows at once"
    after = "" if first or step == 1 else f", after {step - 1} that fitted"
    return f"{field}: out of memory at step {step} {where}{after}; what needs less: {', '.join(ways)}"


def release() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _begin_anew(work: Path, less: Mapping[str, int]) -> None:
    for folder in ("checkpoints", "start"):
        shutil.rmtree(work / folder, ignore_errors=True)
    partial = (work / FOUND).with_suffix(".partial")
    partial.write_text(json.dumps(less) + "\n", encoding="utf-8")
    partial.replace(work / FOUND)


def _functions(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_name
        trace = trace.tb_next
