"""What was made again, held against what the version holds: files bit for bit, then verdicts row by row."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.evaluation.compare import compare_verdicts
from pipelines.evaluation.record import Record
from pipelines.interval import Interval
from pipelines.product import VIEWS


@dataclass(frozen=True)
class Files:
    """How the files of two adapters compare by their hashes."""

    same: list[str]
    differ: list[str]

    @property
    def identical(self) -> bool:
        return not self.differ


@dataclass(frozen=True)
class Scores:
    """The share of right answers on the same rows then and now, and the difference with its paired 95 % interval."""

    then: float
    now: float
    difference: Interval
    rows: int
    turned: int  # rows whose verdict is another

    @property
    def within(self) -> bool:
        return self.difference.low <= 0.0 <= self.difference.high


def files(then: Mapping[str, str], now: Mapping[str, str]) -> Files:
    """Two manifests' hashes by name, without pages and pictures, which fonts change."""
    names = sorted(name for name in {*then, *now} if not name.endswith(VIEWS))
    differ = [name for name in names if then.get(name) != now.get(name)]
    return Files([name for name in names if name not in differ], differ)


def scores(verdicts: Path, records: list[Record], resamples: int, seed: int) -> Scores | None:
    """The version's verdicts (row_id, group, correct) against a new candidate's; None where no row has both.

    Method: the paired bootstrap of `pipelines.evaluation.compare`.
    """
    then = {row["row_id"]: row for row in pq.read_table(verdicts).to_pylist() if row["correct"] is not None}
    now = {record.row_id: bool(record.correct) for record in records if record.correct is not None}
    shared = [row_id for row_id in then if row_id in now]
    if not shared:
        return None
    before, after = [bool(then[row_id]["correct"]) for row_id in shared], [now[row_id] for row_id in shared]
    groups = [str(then[row_id]["group"] or row_id) for row_id in shared]
    compared = compare_verdicts(before, after, groups, resamples, seed)
    return Scores(
        sum(before) / len(before),
        sum(after) / len(after),
        compared.difference,
        len(shared),
        sum(a != b for a, b in zip(before, after, strict=True)),
    )
