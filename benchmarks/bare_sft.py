"""The yardstick: what a user would write with TRL and peft alone, from the same rows, seed and settings.

usage: python -m benchmarks.bare_sft CONFIG.yaml ROWS_FOLDER OUTPUT_FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer


def read(path: Path) -> Dataset:
    """Prompt and completion messages of one split."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


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
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
