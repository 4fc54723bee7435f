"""The table that every number of an evaluation is computed from: one record a row, a way of asking, and a subject."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HELDOUT = "heldout"
VALIDATION = "validation"
ROBUSTNESS = "robustness"
RED_TEAM = "red_team"
LATENCY = "latency"
SAMPLES = "samples"


@dataclass(frozen=True, slots=True)
class Record:
    """What one subject answered to one row, asked in one way.

    `suite` says why it was asked: heldout, validation (for the temperature alone), robustness, red_team, latency
    (asked one at a time), samples, or a harness task's name. `kind` is the perturbation, the kind of attack or the
    sample's number. `prompt` is the messages as JSON, `kept` the columns that stayed with the row as JSON.
    `in_scope` is false where declining is right. `correct` is None where nothing judges, or where there is an
    `error`; of an attack it says that the policy held. `declined` says that the answer was the decline label.
    `confidence` is the answer's, `calibrated` that after the temperature. `options` are the log-likelihoods of
    the labels, in the order that the table's metadata names. `values` are the row's further metrics by name.
    """

    suite: str
    subject: str
    row_id: str
    kind: str
    group: str
    label: str
    source: str
    kept: str
    prompt: str
    expected: str
    in_scope: bool
    answer: str | None
    parsed: str | None
    correct: bool | None
    declined: bool | None
    error: str | None
    finished: bool
    prompt_tokens: int | None
    num_tokens: int | None
    latency_s: float | None
    cost: float | None
    confidence: float | None = None
    calibrated: float | None = None
    options: list[float] | None = None
    values: dict[str, float] = field(default_factory=dict)


_TYPES: dict[str, pa.DataType] = {
    "in_scope": pa.bool_(),
    "correct": pa.bool_(),
    "declined": pa.bool_(),
    "finished": pa.bool_(),
    "prompt_tokens": pa.int64(),
    "num_tokens": pa.int64(),
    "latency_s": pa.float64(),
    "cost": pa.float64(),
    "confidence": pa.float64(),
    "calibrated": pa.float64(),
    "options": pa.list_(pa.float64()),
    "values": pa.map_(pa.string(), pa.float64()),
}
SCHEMA = pa.schema([(f.name, _TYPES.get(f.name, pa.string())) for f in fields(Record)])


def write(path: Path, records: Sequence[Record], about: dict[str, str]) -> None:
    """The records as Parquet, `about` in the file's metadata."""
    columns: dict[str, list[Any]] = {f.name: [getattr(r, f.name) for r in records] for f in fields(Record)}
    columns["values"] = [list(values.items()) for values in columns["values"]]
    schema = SCHEMA.with_metadata({f"tunesmith.{name}": value for name, value in about.items()})
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def read(path: Path) -> tuple[list[Record], dict[str, str]]:
    """The records of a file that `write` wrote, and what it says about them."""
    table = pq.read_table(path)
    held = {key.decode().removeprefix("tunesmith."): value.decode() for key, value in table.schema.metadata.items()}
    records = [Record(**{**row, "values": dict(row["values"])}) for row in table.to_pylist()]
    return records, held


def of(records: Iterable[Record], suite: str, subject: str) -> list[Record]:
    """The records of one suite and subject, in their order."""
    return [record for record in records if record.suite == suite and record.subject == subject]
