"""A cell of GRPO: where a step's time goes."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from benchmarks.gpu_cells import WARM_UP, Call, Cell, questions
from benchmarks.gpu_clock import Clock, now
from benchmarks.gpu_settings import arguments, base, configuration, lora, tokenizer
from pipelines.dataset.row import Row
from pipelines.policy.reinforce import Asked, build_trainer

GROUP = 8  # answers to a prompt
PIECES = 4  # that an optimizer step's answers are scored in
# Methods of the trainer, and what their time counts as where it isn't a nested one's.
METHODS = {
    "training_step": "loss",
    "_generate_and_score_completions": "scoring",
    "_calculate_rewards": "rewards",
    "_generate": "generation",
}
PARTS = (*METHODS.values(), "optimizer", "rest")


def reinforce(cell: Cell, side: str, call: Call, checkpointing: str, work: Path) -> dict[str, Any]:
    """Trains for the warm-up and the timed steps; seconds of each part of a step."""
    length, answers = call.size(cell)
    settings = GRPOConfig(
        **arguments(side, call, checkpointing, work, WARM_UP + call.steps),
        num_generations=min(GROUP, answers // 2),
        per_device_train_batch_size=answers // PIECES,
        gradient_accumulation_steps=PIECES,
        max_completion_length=length // 4 if call.tiny else length,
    )
    asked = questions((WARM_UP + call.steps) * answers)
    trainer = (_ours if side == "tunesmith" else _theirs)(settings, base(cell, side, call), asked, side, work)
    clock, spans = Clock(call), Spans(call)
    clock.watch(trainer)
    spans.watch(trainer)
    trainer.train()
    figures = clock.figures()
    del figures["tokens_per_s"], figures["tokens_per_step"]
    means = [entry["completions/mean_length"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = statistics.fmean(means) * answers
    return figures | {"split_s": spans.figures(), "answer_tokens_per_s": round(tokens / figures["step_s"][0], 1)}


def reward(completions: list[str], **_: Any) -> list[float]:
    """How varied an answer is: cheap, and another for each."""
    return [len(set(text)) / max(1, len(text)) for text in completions]


def _ours(settings: GRPOConfig, model: Any, asked: list[str], side: str, work: Path) -> GRPOTrainer:
    rows = [
        Row(str(n), "gsm8k", [{"role": "user", "content": text}], [], "", "", f"train.jsonl:{n}", str(n))
        for n, text in enumerate(asked)
    ]
    return build_trainer(configuration(), settings, model, tokenizer(), Asked(rows, [_of_messages], [1.0], None), work)


def _theirs(settings: GRPOConfig, model: Any, asked: list[str], side: str, work: Path) -> GRPOTrainer:
    return GRPOTrainer(
        model=model,
        args=settings,
        reward_funcs=[_of_messages],
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in asked]}),
        processing_class=tokenizer(),
        peft_config=lora(side),
    )


def _of_messages(completions: list[list[dict[str, str]]], **_: Any) -> list[float | None]:
    return list(reward([answer[-1]["content"] for answer in completions]))


class Spans(TrainerCallback):
    """Seconds of each part of a step; a part's time is without that of parts within it."""

    def __init__(self, call: Call) -> None:
        self.device = call.device
        self.steps: list[dict[str, float]] = []
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._within = ["rest"]
        self._since = time.perf_counter()

    def watch(self, trainer: Any) -> None:
        """Times the trainer's methods from now on."""
        for method, part in METHODS.items():
            setattr(trainer, method, self._timed(getattr(trainer, method), part))
        trainer.add_callback(self)

    def _timed(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **settings: Any) -> Any:
            self._enter(part)
            try:
                return method(*args, **settings)
            finally:
                self._leave()

        return timed

    def _enter(self, part: str) -> None:
        self._count()
        self._within.append(part)

    def _leave(self) -> None:
        self._count()
        self._within.pop()

    def _count(self) -> None:
        moment = now(self.device)
        self._spent[self._within[-1]] += moment - self._since
        self._since = moment

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = now(self.device)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._enter("optimizer")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._leave()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._count()
        self.steps.append(self._spent)
        self._spent = dict.fromkeys(PARTS, 0.0)

    def figures(self) -> dict[str, float]:
        """The median of each part over the steps behind the warm-up."""
        timed = self.steps[WARM_UP:]
        return {part: round(statistics.median(step[part] for step in timed), 4) for part in PARTS}
