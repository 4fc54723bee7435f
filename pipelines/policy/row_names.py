"""Which rows a micro-batch holds, told from what the trainer gets, so that nothing has to travel with the tokens."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.policy.mask import Example


class ByTokens:
    """Rows found by their tokens, in padded batches and in packed sequences.

    Of rows with the same tokens the first is named.
    """

    def __init__(self, examples: Iterable[Example], max_length: int | None) -> None:
        """`max_length` is where the trainer cuts a row at its end."""
        self._ids: dict[int, str] = {}
        for example in examples:
            self._ids.setdefault(hash(tuple(example.input_ids[:max_length])), example.row_id)

    def __call__(self, batch: Any) -> list[str]:
        """The ids of the rows in a batch of `input_ids`; those that aren't known are left out."""
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            return []
        found = (self._ids.get(hash(tuple(row))) for row in _rows(batch))
        return [row for row in found if row is not None]


class ByNumber:
    """Rows found by the column `row` of a batch that is a list of the data set's own records."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids

    def __call__(self, batch: Any) -> list[str]:
        """The ids, each once."""
        numbers = [int(one["row"]) for one in batch if "row" in one] if isinstance(batch, Sequence) else []
        return list(dict.fromkeys(self._ids[number] for number in numbers))


def _rows(batch: Mapping[str, Any]) -> Iterable[list[int]]:
    """The tokens of each row, without padding."""
    ids, places = batch["input_ids"], batch.get("position_ids")
    if "attention_mask" in batch:
        for row, seen in zip(ids, batch["attention_mask"], strict=True):
            yield row[seen.bool()].tolist()
    elif places is not None:
        begins = [*(places[0] == 0).nonzero().flatten().tolist(), ids.size(1)]
        for begin, end in itertools.pairwise(begins):
            yield ids[0, begin:end].tolist()
