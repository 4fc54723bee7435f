"""Which rows make an optimizer step: those that one process with the whole batch would take, however it is divided.

A step's rows are divided into micro-batches and over processes. accelerate's BatchSamplerShard gives process p of P the
micro-batches p, P + p, 2 P + p, ...: P times accumulation micro-batches in a row are a step, whatever P is.
"""

from collections.abc import Iterator
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler, SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from pipelines.compute import ranks
from pipelines.policy.mask import IGNORED

BLANK = -1  # a blank row's number


def rows_of_step(args: Any) -> int:
    """Rows, or packed sequences, of an optimizer step over all processes."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


def with_blanks(rows: Dataset, args: Any, padding: int) -> Dataset:
    """The rows, and behind them as many blank ones as an epoch may lack to give every process as many.

    accelerate would show the first rows once more instead. A blank row is two tokens of padding of which nothing is
    learnt; one process needs none.
    """
    if args.world_size == 1:
        return rows
    # A round of micro-batches lacks at most all but one of its rows.
    count = args.per_device_train_batch_size * args.world_size - 1
    blank: dict[str, list[Any]] = {"input_ids": [[padding] * 2] * count, "labels": [[IGNORED] * 2] * count}
    if "seq_lengths" in rows.column_names:
        blank["seq_lengths"] = [[2]] * count
    if "row" in rows.column_names:
        blank["row"] = [BLANK] * count
    return concatenate_datasets([rows, Dataset.from_dict(blank, features=rows.features)])


class Shared(Sampler[int]):
    """One order for all processes, the first one's, filled with blank rows to whole rounds of micro-batches."""

    def __init__(self, order: Sampler[int], count: int, size: int) -> None:
        """`order` is over `count` rows, behind which the blank ones are; `size` is a round of micro-batches."""
        self._order, self._count, self._size = order, count, size

    def set_epoch(self, epoch: int) -> None:
        """For an order that is drawn by the epoch."""
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        # Processes' random states part where dropout draws for batches of other shapes.
        drawn = list(self._order)
        return iter([*ranks.from_main(lambda: drawn), *range(self._count, len(self))])

    def __len__(self) -> int:
        return -(-self._count // self._size) * self._size


class SameSteps:
    """For a trainer over rows of `input_ids`: the same rows a step, whatever the micro-batch and the processes.

    One process has transformers' own order, which depends on the whole batch alone.
    """

    args: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args, rows = self.args, self.train_dataset if train_dataset is None else train_dataset
        if args.world_size == 1 or args.train_sampling_strategy == "batch_rebalance":
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        round_size = args.per_device_train_batch_size * args.world_size
        count = len(rows) - round_size + 1
        order: Any = SeedableRandomSampler(range(count), data_seed=args.data_seed)
        if args.train_sampling_strategy == "group_by_length":
            lengths = [len(ids) for ids in rows["input_ids"][:count]]
            order = LengthGroupedSampler(rows_of_step(args), lengths=lengths)
        elif args.train_sampling_strategy == "sequential":
            order = SequentialSampler(range(count))
        return Shared(order, count, round_size)
