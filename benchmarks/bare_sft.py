"""The yardstick: what a user would write with TRL and peft alone, from the same rows, seed and settings.

usage: python -m benchmarks.bare_sft CONFIG.yaml ROWS_FOLDER OUTPUT_FOLDER

Beside the adapter it leaves `history.json`, what the trainer logged, and `first_step.txt`, when its first step had
ended in seconds since the epoch.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer


def read(path: Path) -> Dataset:
    """Prompt and completion messages of one split."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


class FirstStep(TrainerCallback):
    """Writes down when the first loss was logged."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self.place.exists():
            self.place.write_text(str(time.time()), encoding="utf-8")


def main(config_file: str, rows: str, output: str) -> None:
    """Trains and saves the adapter."""
    config = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
    base = config["model"]["id"]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa"),
        args=SFTConfig(
            output_dir=f"{output}/checkpoints",
            seed=config["seed"],
            use_cpu=True,
            bf16=False,
            **config["sft"]["trainer"],
        ),
        train_dataset=read(Path(rows) / "train.jsonl"),
        eval_dataset=read(Path(rows) / "validation.jsonl"),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **config["adapter"]["peft"]),
        callbacks=[EarlyStoppingCallback(config["sft"]["early_stopping_patience"])],
    )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.add_callback(FirstStep(folder / "first_step.txt"))
    trainer.train()
    trainer.save_model(output)
    (folder / "history.json").write_text(json.dumps(trainer.state.log_history), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
