"""Whether a step is the same however its rows are divided: the loss of every step, by micro-batch and processes.

usage: python -m benchmarks.compute_equivalence
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.compute.strategy import begin
from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Config
from pipelines.policy.base import pin
from pipelines.policy.mask import IGNORED, Example

GEOMETRIES = ((8, 1), (4, 2), (2, 4), (1, 8))  # rows at once and micro-batches of a step, on one process
ON_TWO = ((4, 1), (2, 2), (1, 4))
ROWS, STEPS = 43, 14  # a last step of three rows, and a third epoch
SETTINGS = [
    "model=tiny",
    "adapter.peft.r=8",
    f"sft.trainer.max_steps={STEPS}",
    "sft.trainer.logging_steps=1",
    "sft.trainer.eval_strategy=no",
    "sft.trainer.save_strategy=no",
    "sft.trainer.load_best_model_at_end=false",
    "sft.early_stopping_patience=null",
    "sft.trainer.learning_rate=0.001",
]


def measure(temporary: Path, *overrides: str, two: bool = True) -> dict[str, float]:
    """The largest difference between the losses of a step, float32 on a CPU; `two` adds runs of two processes."""
    runs = [losses(temporary, micro, accumulation, overrides) for micro, accumulation in GEOMETRIES]
    if two:
        runs += [losses_of_two(temporary, micro, accumulation, overrides) for micro, accumulation in ON_TWO]
    if any(len(run) != STEPS for run in runs):
        raise RuntimeError(f"expected {STEPS} steps of each run, got {[len(run) for run in runs]}")
    return {"equivalence_max_diff": max(max(step) - min(step) for step in zip(*runs, strict=True))}


def losses(temporary: Path, micro: int, accumulation: int, overrides: Sequence[str] = ()) -> list[float]:
    """The loss of every step of a real run of this process, which may be one of several."""
    from pipelines.policy.fit import Course, fit
    from pipelines.policy.imitation import rows_per_step

    config = config_of(micro, accumulation, overrides)
    begin(config.compute)
    with tempfile.TemporaryDirectory(dir=temporary) as work:
        trainer = build(config, Path(work))
        fitted = fit(trainer, lambda values, step: None, Course(rows_per_step(trainer), {}))
    return [entry["loss"] for entry in fitted.history if "loss" in entry]


def build(config: Config, work: Path) -> Any:
    """The trainer that the stage sft builds, over `examples`."""
    from pipelines.policy.base import load_base, load_tokenizer
    from pipelines.policy.imitation import build_trainer, settings_of

    settings = settings_of(config, "sft", work)
    base = load_base(config.model, config.adapter, config.compute)
    return build_trainer(config, settings, base, load_tokenizer(config.model), {"train": examples()}, "sft")


def losses_of_two(temporary: Path, micro: int, accumulation: int, overrides: Sequence[str] = ()) -> list[float]:
    """As `losses`, of two processes on this machine with half of a step each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = temporary / f"losses-{micro}-{accumulation}.json"
    words = [sys.executable, "-m", "benchmarks.compute_equivalence", str(found), str(micro), str(accumulation)]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [*words, "compute.num_processes=2", *overrides],
            cwd=PROJECT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"two processes with {micro} x {accumulation} rows ended with {codes}")
    read: list[float] = json.loads(found.read_text(encoding="utf-8"))
    return read


def examples() -> list[Example]:
    """Rows of random tokens, of unlike lengths and with unlike shares that are learnt."""
    draw = random.Random(0)
    found = []
    for number in range(ROWS):
        ids = [draw.randrange(10, 3000) for _ in range(draw.randrange(8, 60))]
        prompt = draw.randrange(2, len(ids) - 2)
        found.append(Example(f"row-{number}", ids, [IGNORED] * prompt + ids[prompt:], prompt, True))
    return found


def config_of(micro: int, accumulation: int, overrides: Sequence[str] = ()) -> Config:
    """The stage's configuration, its model pinned."""
    sizes = [
        f"sft.trainer.per_device_train_batch_size={micro}",
        f"sft.trainer.gradient_accumulation_steps={accumulation}",
    ]
    config = compose([*SETTINGS, *sizes, *overrides]).config
    return config.model_copy(update={"model": pin(config.model)})


def main(words: Sequence[str]) -> None:
    """Without words measures; with a file, two sizes and overrides is one process of a run."""
    with tempfile.TemporaryDirectory() as temporary:
        if not words:
            print(json.dumps(measure(Path(temporary))))
            return
        place, micro, accumulation, *overrides = words
        found = losses(Path(temporary), int(micro), int(accumulation), overrides)
    if os.environ["RANK"] == "0":
        Path(place).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
