"""Every completion of a training run with what it was worth, as Parquet, tied to the run and the step."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.row import Row
from pipelines.rewards.parts import Answer
from pipelines.rewards.scoring import Scored

FILE = "rollouts.parquet"
SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("step", pa.int64()),
        ("group", pa.int64()),
        ("sample", pa.int64()),
        ("row_id", pa.string()),
        ("prompt", pa.string()),
        ("expected", pa.string()),
        ("completion", pa.string()),
        ("num_tokens", pa.int64()),
        ("finished", pa.bool_()),
        ("outcome", pa.string()),
        ("parsed", pa.string()),
        ("confirmed", pa.bool_()),
        ("reward", pa.float64()),
        ("parts", pa.map_(pa.string(), pa.float64())),
    ]
)


@dataclass(frozen=True)
class Batch:
    """The completions of one generation: `size` for each prompt, one prompt's behind one another."""

    step: int
    rows: Sequence[Row]
    answers: Sequence[Answer]
    scored: Sequence[Scored]
    size: int
    first_group: int = 0  # of this rank's; the groups of those before it are counted first

    def records(self, run_id: str) -> list[dict[str, Any]]:
        """One record a completion, by the schema's names."""
        return [
            {
                "run_id": run_id,
                "step": self.step,
                "group": self.first_group + number // self.size,
                "sample": number % self.size,
                "row_id": row.id,
                "prompt": json.dumps(row.prompt, ensure_ascii=False),
                "expected": row.answer,
                "completion": answer.text,
                "num_tokens": answer.num_tokens,
                "finished": answer.finished,
                "outcome": scored.told,
                "parsed": scored.outcome.verdict.parsed if scored.outcome.verdict else None,
                "confirmed": scored.confirmed,
                "reward": scored.reward,
                "parts": list((scored.parts or {}).items()),
            }
            for number, (row, answer, scored) in enumerate(zip(self.rows, self.answers, self.scored, strict=True))
        ]

    def groups(self) -> list[range]:
        """The numbers of each prompt's completions."""
        return [range(begin, begin + self.size) for begin in range(0, len(self.rows), self.size)]


class Rollouts:
    """A folder with a file for every generation of a rank, which a restart goes on with, and one of all at the end."""

    def __init__(self, folder: Path, run_id: str, rank: int = 0) -> None:
        self._folder, self._run_id, self._rank = folder, run_id, rank
        folder.mkdir(parents=True, exist_ok=True)

    def begin_at(self, step: int) -> None:
        """Forgets what an earlier attempt made from this step on: it is made again."""
        for path in self._folder.glob("*.parquet"):
            made, _, rank = path.stem.partition("-")
            if int(made) >= step and int(rank or 0) == self._rank:
                path.unlink()

    def add(self, batch: Batch) -> None:
        """Writes a generation, whole or not at all."""
        batch = replace(batch, first_group=self._rank * len(batch.groups()))
        path = self._folder / f"{batch.step:08d}{f'-{self._rank:04d}' if self._rank else ''}.parquet"
        partial = path.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(batch.records(self._run_id), SCHEMA), partial, compression="zstd")
        partial.replace(path)

    def table(self) -> pa.Table:
        """All that was added, by step."""
        files = sorted(self._folder.glob("*.parquet"), key=lambda path: path.stem)
        return pa.concat_tables([pq.read_table(path) for path in files]) if files else SCHEMA.empty_table()

    def gather(self, place: Path) -> pa.Table:
        """Writes all generations as the file `place`; returns what was written."""
        table = self.table()
        pq.write_table(table, place, compression="zstd")
        return table

    def remove(self) -> None:
        """Removes the folder, once all of it is elsewhere."""
        shutil.rmtree(self._folder)
