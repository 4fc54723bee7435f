"""Rows -> tokens, and rows packed: speed beside `datasets.Dataset.map`, padding, and what crosses between rows.

usage: python -m benchmarks.data_tokens tokenise|packing
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Row
from pipelines.policy import mask
from pipelines.policy.base import load_tokenizer, template_switches
from pipelines.policy.packing import pack, padding

REPEATS = 3
LENGTH = 1024
PROBED = 12  # rows packed to see what crosses


def tokenise() -> dict[str, float]:
    """CPU seconds for ids and loss masks of GSM8K: `mask.encode` and a per-row map, in turn, medians of three.

    Raises RuntimeError where the two disagree in an id or a mask.
    """
    tokenizer, rows = _tokenizer(), _gsm8k()
    mapped = _mapped(tokenizer, rows)
    _check_same(_encoded(tokenizer, rows), mapped())
    ours, theirs = [], []
    for _ in range(REPEATS):
        ours.append(_cpu_seconds(lambda: _encoded(tokenizer, rows)))
        theirs.append(_cpu_seconds(mapped))
    fast, slow = (len(rows) / statistics.median(seconds) for seconds in (ours, theirs))
    return {"tokenise_ratio": fast / slow, "tokenise_rows_per_cpu_s": fast, "map_rows_per_cpu_s": slow}


def packing() -> dict[str, float]:
    """The share of padding in GSM8K packed to 1024 tokens, and how far a changed row moves another row's loss.

    Raises RuntimeError where packing splits a row.
    """
    from datasets import Dataset

    rows = _encoded(_tokenizer(), _gsm8k())
    packed = pack(
        Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]}), LENGTH
    )
    found = sorted(length for lengths in packed["seq_lengths"] for length in lengths)
    if found != sorted(len(row.input_ids) for row in rows):
        raise RuntimeError("packing split a row")
    return {"packing_padding": padding(packed, LENGTH), "packing_crossing": _crossing(rows[:PROBED])}


def _gsm8k() -> list[Row]:
    lines = (PROJECT / "data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [_row(number, json.loads(line)) for number, line in enumerate(lines, start=1)]


def _row(number: int, record: dict[str, str]) -> Row:
    prompt = [{"role": "user", "content": record["question"]}]
    completion = [{"role": "assistant", "content": record["answer"]}]
    return Row(
        str(number), "gsm8k", prompt, completion, record["answer"], "gsm8k", f"train.jsonl:{number}", str(number)
    )


def _tokenizer() -> Any:
    return load_tokenizer(compose([]).config.model)


def _encoded(tokenizer: Any, rows: list[Row]) -> list[mask.Example]:
    return mask.encode(tokenizer, rows, template_switches(compose([]).config.model), "assistant")


def _mapped(tokenizer: Any, rows: list[Row]) -> Callable[[], Any]:
    """The yardstick: what a user would write."""
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list([{"messages": [*row.prompt, *row.completion]} for row in rows])
    return lambda: data.map(
        lambda row: tokenizer.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    )


def _check_same(ours: list[mask.Example], theirs: Any) -> None:
    if [example.input_ids for example in ours] != theirs["input_ids"][:]:
        raise RuntimeError("the ids differ from those of apply_chat_template")
    learned = [[int(label != mask.IGNORED) for label in example.labels] for example in ours]
    if learned != theirs["assistant_masks"][:]:
        raise RuntimeError("the masks differ from those of apply_chat_template")


def _cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _crossing(rows: list[mask.Example]) -> float:
    """The largest change of any other row's loss when one row of the first sequence is written backwards."""
    from pipelines.sft import build_trainer, trainer_settings

    config = compose(["sft.trainer.packing=true", f"sft.trainer.max_length={LENGTH}"]).config
    with tempfile.TemporaryDirectory() as folder:
        examples = {"train": rows, "validation": rows}
        trainer = build_trainer(config, trainer_settings(config, Path(folder)), _tokenizer(), examples)
    sequence = trainer.train_dataset[0]
    first = sequence["seq_lengths"][0]
    ids = sequence["input_ids"]
    before = _losses(trainer, sequence)
    after = _losses(trainer, {**sequence, "input_ids": [*reversed(ids[:first]), *ids[first:]]})
    return max(abs(a - b) for a, b in zip(before[1:], after[1:], strict=True))


def _losses(trainer: Any, sequence: dict[str, Any]) -> list[float]:
    """Each row's mean loss over what is learned."""
    import torch

    batch = trainer.data_collator([sequence])
    labels = batch.pop("labels")[0]
    with torch.inference_mode():
        logits = trainer.model.eval()(**batch, use_cache=False).logits[0]
    each = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="none", ignore_index=mask.IGNORED)
    losses = torch.cat([torch.zeros(1), each]).split(sequence["seq_lengths"])
    learned = [(row[1:] != mask.IGNORED).sum() for row in labels.split(sequence["seq_lengths"])]
    return [float(loss[1:].sum() / count) for loss, count in zip(losses, learned, strict=True)]


if __name__ == "__main__":
    print(json.dumps({"tokenise": tokenise, "packing": packing}[sys.argv[1]]()))
