"""Several rows in one sequence: what may be packed, how, and the proof that no row sees another."""

from typing import Any

from pipelines.config.schema import Config
from pipelines.errors import UserError

ROWS_TOGETHER = 10_000  # packed as one: fewer leave more padding, all at once a copy of every token
PROMPT_METHODS = ("prefix_tuning", "p_tuning")
PROBE = 8  # tokens of each row
TOLERANCE = 1e-4  # of the largest logit


def check_packing(config: Config, field: str = "sft.trainer") -> None:
    """Refuses, by field and before anything is loaded, a packing that splits rows or lets them see each other."""
    trainer = getattr(config, field.partition(".")[0]).trainer
    packing = trainer.get("packing", False)
    if trainer.get("padding_free") and not packing:
        raise UserError(f"{field}.padding_free: rows without padding are packed here; use {field}.packing=true")
    if trainer.get("eval_packing") not in (None, packing):
        raise UserError(f"{field}.eval_packing: validation rows are packed as the others are; set packing alone")
    if not packing:
        return
    if trainer.get("max_length") is None:
        raise UserError(f"{field}.max_length: packing needs the length of a sequence, got null")
    if trainer.get("shuffle_dataset"):
        raise UserError(f"{field}.shuffle_dataset: packing sorts rows by length; the sampler shuffles sequences")
    strategy = trainer.get("packing_strategy", "bfd")
    if strategy != "bfd":
        raise UserError(f"{field}.packing_strategy: {strategy} cuts rows in two; use bfd")
    if config.adapter.method in PROMPT_METHODS:
        raise UserError(
            f"{field}.packing: {config.adapter.method} puts its prompt before a sequence, not before each row of "
            "it; use packing=false"
        )


def pack(rows: Any, max_length: int) -> Any:
    """Rows packed best-fit into sequences of at most `max_length` tokens, each row whole.

    `rows` is a `datasets.Dataset` of `input_ids` and `labels`; the one returned has `seq_lengths` too, the length of
    each row in a sequence. A row longer than `max_length` is cut to it. After Ding et al. 2024, "Fewer Truncations
    Improve Language Modeling".
    """
    from trl import pack_dataset

    return pack_dataset(rows, max_length, "bfd", {"batch_size": ROWS_TOGETHER})


def rows_per_sequence(rows: Any) -> float:
    """How many rows a sequence of the trainer's data set holds on average; 1 where they aren't packed."""
    if "seq_lengths" not in rows.column_names:
        return 1.0
    return sum(map(len, rows["seq_lengths"])) / len(rows)


def padding(packed: Any, max_length: int) -> float:
    """The share of `max_length` that the sequences leave empty."""
    return 1 - sum(map(sum, packed["seq_lengths"])) / (len(packed) * max_length)


def check_apart(trainer: Any, field: str = "sft.trainer") -> None:
    """Two rows through the trainer's own collator and model: another first row must change nothing in the second.

    Raises UserError where it does: the model's class or attention then reads over the border between rows.
    """
    second = list(range(30, 30 + PROBE))
    changed, largest = _difference(trainer, list(range(10, 10 + PROBE)), list(range(20, 20 + PROBE)), second)
    if not changed <= TOLERANCE * largest:
        base = trainer.model.get_base_model()
        raise UserError(
            f"{field}.packing: with compute.attn_implementation={base.config._attn_implementation} "
            f"{type(base).__name__} lets packed rows see each other; use packing=false"
        )


def _difference(trainer: Any, first: list[int], other: list[int], second: list[int]) -> tuple[float, float]:
    """How far the logits of `second` move when `first` before it becomes `other`; and the largest of them."""
    before, after = (_logits(trainer, [row, second])[len(row) :] for row in (first, other))
    return float((before - after).abs().max()), float(before.abs().max())


def _logits(trainer: Any, rows: list[list[int]]) -> Any:
    """Logits of one packed sequence, float32 of (tokens, vocabulary)."""
    import torch

    ids = [token for row in rows for token in row]
    batch = trainer.data_collator([{"input_ids": ids, "labels": ids, "seq_lengths": [len(row) for row in rows]}])
    del batch["labels"]
    model, training = trainer.model, trainer.model.training
    inputs = {name: v.to(model.device) if torch.is_tensor(v) else v for name, v in batch.items()}
    with torch.inference_mode():
        logits = model.eval()(**inputs, use_cache=False).logits[0].float()
    model.train(training)
    return logits
