"""Small real trainings, each in a process of its own, forked once all is imported, to be killed and gone on with.

`Training` trains a LoRA on random weights through the stage's own `fit`: eight steps over three epochs, with dropout,
validation, early stopping and the best model loaded at the end, a checkpoint at every step.
"""

import csv
import gc
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks import random_model

STEPS = 8
ROWS = 24
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class Training:
    """A training with its model and rows, ready to be run in forks of this process."""

    model: Path
    rows: Path
    overrides: tuple[str, ...] = ()

    def run(self, work: Path) -> None:
        """Trains into `work`, from its newest checkpoint where there is one, and hands the adapter over."""
        from pipelines import sft
        from pipelines.compute import ranks
        from pipelines.compute.strategy import begin
        from pipelines.config.compose import compose
        from pipelines.contract import terms
        from pipelines.dataset.row import Row
        from pipelines.policy import imitation, mask
        from pipelines.policy.base import load_tokenizer, pin
        from pipelines.policy.fit import Course, fit, hand_over
        from pipelines.stages import STAGES

        together = f"compute.num_processes={ranks.world_size()}"
        config = compose([*self._settings(), together, *self.overrides]).config
        config = config.model_copy(update={"model": pin(config.model)})
        begin(config.compute)
        work = ranks.own(work)
        work.mkdir(parents=True, exist_ok=True)
        settings = sft.trainer_settings(config, work)
        tokenizer = load_tokenizer(config.model)
        with self.rows.open(encoding="utf-8", newline="") as stream:
            texts = [(record["text"].strip(), record["category"]) for record in csv.DictReader(stream)]
        rows = [
            Row(
                id=str(number),
                task="",
                prompt=[{"role": "user", "content": text}],
                completion=[{"role": "assistant", "content": intent}],
                answer=intent,
                label=intent,
                source="",
                group="",
            )
            for number, (text, intent) in enumerate(texts[:: len(texts) // (2 * ROWS)][: 2 * ROWS])
        ]
        encoded = mask.encode(tokenizer, rows, {}, config.sft.loss)
        examples = {"train": encoded[:ROWS], "validation": encoded[ROWS:]}
        trainer = sft.build_trainer(config, settings, tokenizer, examples)
        course = Course(imitation.rows_per_step(trainer), terms(STAGES["sft"], config, {}))
        fitted = fit(trainer, lambda values, step: None, course)
        hand_over(config, trainer, tokenizer, fitted, work)

    def _settings(self) -> list[str]:
        return [
            f"model.id={self.model}",
            "adapter.peft.r=4",
            "adapter.peft.lora_dropout=0.1",
            f"sft.trainer.max_steps={STEPS}",
            "sft.trainer.per_device_train_batch_size=4",
            "sft.trainer.gradient_accumulation_steps=2",
            "sft.trainer.learning_rate=0.05",
            "sft.trainer.logging_steps=1",
            "sft.trainer.eval_steps=1",
            "sft.trainer.save_steps=1",
            "sft.early_stopping_patience=5",
        ]

    def start(self, work: Path, log: Path, environment: Mapping[str, str] | None = None) -> int:
        """The id of a new process that trains; its code is 0 where it came to the end."""
        sys.stdout.flush()
        sys.stderr.flush()
        if process := os.fork():
            return process
        code = 1
        try:
            with log.open("a", encoding="utf-8") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            sys.stdout = sys.stderr = os.fdopen(os.dup(1), "w", buffering=1)
            from pipelines import stopping
            from pipelines.errors import Stopped, UserError

            os.environ |= environment or {}
            stopping.install()
            try:
                self.run(work)
                code = 0
            except Stopped as stop:
                code = stop.exit_code
            except UserError as error:
                print(error)
                code = error.exit_code
        finally:
            _leave(code)

    def whole(self, work: Path, log: Path) -> bytes:
        """Trains to the end in a process of its own; its `outcome`. Raises RuntimeError with its log where it fails."""
        code = ended(self.start(work, log))
        if code:
            raise RuntimeError(f"a training ended with {code}:\n{log.read_text(encoding='utf-8')[-4000:]}")
        return outcome(work)


def outcome(work: Path) -> bytes:
    """The adapter, and behind it every step's losses: the best model alone would hide what came after its step."""
    history = json.loads((work / "training.json").read_text(encoding="utf-8"))
    steps = [[entry[name] for name in ("step", "loss", "eval_loss") if name in entry] for entry in history]
    return (work / ADAPTER).read_bytes() + json.dumps(steps).encode()


def prepared(folder: Path, *overrides: str) -> Training:
    """A training on a model of random weights, made in a process of its own: torch's threads don't survive a fork."""
    import importlib.util

    from pipelines.__main__ import quieten
    from pipelines.config.paths import PROJECT

    quieten()
    for name in ("torch", "trl", "peft", "datasets", "deepspeed", "pipelines.sft", "pipelines.policy.imitation"):
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    for name in ("SFTTrainer", "SFTConfig"):
        getattr(importlib.import_module("trl"), name)
    gc.collect()
    gc.freeze()  # what is imported is no garbage, and looking at it takes the forks a second each
    process = os.fork()
    if not process:
        code = 1
        try:
            random_model.write(
                folder / "model",
                hidden_size=32,
                num_hidden_layers=2,
                intermediate_size=64,
                num_attention_heads=2,
                head_dim=16,
            )
            code = 0
        finally:
            _leave(code)
    if ended(process):
        raise RuntimeError("the model couldn't be made")
    return Training(folder / "model", PROJECT / "data/banking77/train.csv", overrides)


def _leave(code: int) -> NoReturn:
    """Ends a fork without what its parent has open, after the traceback of what goes wrong in it."""
    if sys.exc_info()[0]:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def ended(process: int) -> int:
    """Waits for a process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def signalled(process: int, when: Callable[[], bool], signum: signal.Signals = signal.SIGKILL) -> int:
    """Sends the signal as soon as `when` says so, if the process is still there; its exit code, as `ended` gives it."""
    while True:
        gone, status = os.waitpid(process, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        if when():
            os.kill(process, signum)
            return ended(process)
        time.sleep(0.0002)


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def draws(seed: int) -> random.Random:
    """What chooses the moments."""
    return random.Random(seed)
