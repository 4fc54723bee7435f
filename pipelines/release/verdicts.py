"""Each held-out row's verdict, so that two versions can be paired without their runs: `verdicts.parquet`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluation.record import Record

SCHEMA = pa.schema([("row_id", pa.string()), ("group", pa.string()), ("correct", pa.bool_())])


def write(path: Path, records: Sequence[Record]) -> None:
    """The candidate's records on its held-out rows.

    `group` is null where no other row is of it, `correct` where there is no verdict.
    """
    members = Counter(record.group for record in records)
    columns = {
        "row_id": [record.row_id for record in records],
        "group": [record.group if record.group and members[record.group] > 1 else None for record in records],
        "correct": [record.correct for record in records],
    }
    # Ids are all different and share their beginnings; a dictionary of them would be as long as they are.
    pq.write_table(
        pa.table(columns, schema=SCHEMA),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=["group"],
        column_encoding={"row_id": "DELTA_BYTE_ARRAY"},
        write_statistics=False,
        store_schema=False,
    )
