"""Packed rows stay whole and see only themselves, in the trainer that trains them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows
from pipelines.errors import UserError
from pipelines.policy import mask
from pipelines.policy.packing import check_apart, check_packing, pack, padding, rows_per_sequence
from pipelines.sft import build_trainer, trainer_settings
from tests.conftest import World

PACKED = ["sft.trainer.packing=true", "sft.trainer.max_length=512"]


def gsm8k(count: int) -> list[Row]:
    lines = (PROJECT / "data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = []
    for number, line in enumerate(lines, start=1):
        record = json.loads(line)
        prompt = [{"role": "user", "content": record["question"]}]
        completion = [{"role": "assistant", "content": record["answer"]}]
        rows.append(Row(f"row{number}", "task", prompt, completion, "a", "a", f"train.jsonl:{number}", "g"))
    return rows


@pytest.fixture(scope="module")
def tokenizer(small_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(small_model)


def trainer_of(folder: Path, model: Path, tokenizer: Any, *overrides: str) -> Any:
    config = compose([f"model.id={model}", "adapter.peft.r=4", *PACKED, *overrides]).config
    rows = mask.encode(tokenizer, gsm8k(6), {}, "completion")
    settings = trainer_settings(config, folder)
    return build_trainer(config, settings, tokenizer, {"train": rows, "validation": rows[:2]})


def row_losses(trainer: Any, sequences: list[dict[str, Any]]) -> list[float]:
    """Each row's mean loss over what is learned, all sequences in one batch of the trainer's collator."""
    batch = trainer.data_collator(sequences)
    labels = batch.pop("labels")[0]
    with torch.no_grad():
        logits = trainer.model.eval()(**batch, use_cache=False).logits[0]
    each = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="none", ignore_index=mask.IGNORED)
    lengths = [length for sequence in sequences for length in sequence["seq_lengths"]]
    learned = [labels_of[1:] for labels_of in labels.split(lengths)]
    losses = torch.cat([torch.zeros(1), each]).split(lengths)
    return [float(loss[1:].sum() / (kept != mask.IGNORED).sum()) for loss, kept in zip(losses, learned, strict=True)]


def apart(sequence: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row of a sequence as a sequence of its own."""
    split = {name: torch.tensor(sequence[name]).split(sequence["seq_lengths"]) for name in ("input_ids", "labels")}
    pairs = zip(split["input_ids"], split["labels"], strict=True)
    return [{"input_ids": i.tolist(), "labels": t.tolist(), "seq_lengths": [len(i)]} for i, t in pairs]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_loses_what_it_loses_alone(
    attention: str, tmp_path: Path, small_model: Path, tokenizer: Any
) -> None:
    trainer = trainer_of(tmp_path, small_model, tokenizer, f"compute.attn_implementation={attention}")
    assert trainer.model.get_base_model().config._attn_implementation == attention
    sequences = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    assert max(len(sequence["seq_lengths"]) for sequence in sequences) > 1
    packed = row_losses(trainer, sequences)
    alone = [row_losses(trainer, [row])[0] for sequence in sequences for row in apart(sequence)]
    assert packed == pytest.approx(alone, abs=1e-5)
    first = sequences[0]["seq_lengths"][0]
    sequences[0]["input_ids"][:first] = sequences[0]["input_ids"][:first][::-1]
    changed = row_losses(trainer, sequences)
    assert abs(changed[0] - packed[0]) > 1e-3
    assert changed[1:] == pytest.approx(packed[1:], abs=1e-5)


def test_a_collator_that_forgets_the_borders_is_refused(tmp_path: Path, small_model: Path, tokenizer: Any) -> None:
    trainer = trainer_of(tmp_path, small_model, tokenizer)
    trainer.model.train()
    check_apart(trainer)
    assert trainer.model.training
    trainer.data_collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=False)
    with pytest.raises(UserError, match=r"sft\.trainer\.packing: .*sdpa Qwen3ForCausalLM lets packed rows see each"):
        check_apart(trainer)


def test_every_row_is_packed_whole_with_little_padding() -> None:
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")
    rows = mask.encode(tokenizer, gsm8k(3000), {}, "completion")
    data = Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})
    packed = pack(data, 1024)
    assert 0 < padding(packed, 1024) < 0.02
    assert max(map(len, packed["input_ids"])) <= 1024
    assert rows_per_sequence(packed) == len(rows) / len(packed)
    found = [row for sequence in packed for row in apart(sequence)]
    assert sorted((r["input_ids"], r["labels"]) for r in found) == sorted((r.input_ids, r.labels) for r in rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+sft.trainer.packing_strategy=wrapped"], r"packing_strategy: wrapped cuts rows in two; use bfd"),
        (["+sft.trainer.packing_strategy=bfd_split"], r"packing_strategy: bfd_split cuts rows in two; use bfd"),
        (["sft.trainer.max_length=null"], r"sft\.trainer\.max_length: packing needs .*, got null"),
        (["+sft.trainer.eval_packing=false"], r"sft\.trainer\.eval_packing: .* set packing alone"),
        (["+sft.trainer.shuffle_dataset=true"], r"sft\.trainer\.shuffle_dataset: packing sorts"),
        (["sft.trainer.packing=false", "+sft.trainer.padding_free=true"], r"use sft\.trainer\.packing=true"),
        (["sft.trainer.packing=false", "+sft.trainer.eval_packing=true"], r"sft\.trainer\.eval_packing"),
        (["adapter=prefix_tuning"], r"sft\.trainer\.packing: prefix_tuning puts its prompt before a sequence"),
        (["adapter=p_tuning"], r"sft\.trainer\.packing: p_tuning puts"),
    ],
)
def test_what_would_split_or_mix_rows_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_packing(compose([*PACKED, *overrides]).config)


def test_the_stage_trains_on_as_many_tokens_packed_as_not(world: World, tokenizer: Any) -> None:
    assert world.run("prepare") == 0
    settings = ["sft.trainer.max_steps=-1", "sft.trainer.num_train_epochs=1", "sft.trainer.max_length=128"]
    settings += [f"sft.rows={world.product('rows')}", "sft.trainer.packing=true"]
    assert world.run("sft", *settings) == 0
    history = json.loads((world.product("adapter") / "training.json").read_text(encoding="utf-8"))
    logged = [entry["num_tokens"] for entry in history if "loss" in entry]
    rows = mask.encode(tokenizer, read_rows(world.product("rows") / "train.jsonl"), {}, "completion")
    assert logged[-1] == sum(len(row.input_ids) for row in rows)
    assert len(logged) < len(rows) / 8 / 2  # steps, of eight sequences each
