"""Rows on disk come back as they went, whatever their number."""

from pathlib import Path

import numpy as np

from pipelines.dataset.spool import ROWS_IN_MEMORY, Spool, SpoolWriter


def fill(folder: Path, count: int) -> Spool:
    writer = SpoolWriter(folder)
    for n in range(count):
        values = {"id": 2**63 + n, "asks": n, "whole": n, "group": n // 2, "split": n % 3, "origin": 1, "time": n / 2}
        writer.add(f'{{"n": {n}, "text": "é{"x" * (n % 7)}"}}'.encode(), f"asked é{n}", f"label {n % 5}", **values)
    return writer.close()


def test_lines_and_columns_come_back(tmp_path: Path) -> None:
    count = 2 * ROWS_IN_MEMORY + 17
    spool = fill(tmp_path, count)
    assert len(spool) == count
    assert spool.column("id").tolist() == [2**63 + n for n in range(count)]
    assert spool.column("time")[-1] == (count - 1) / 2
    assert [spool.labels[code] for code in spool.column("label")[:6]] == [f"label {n % 5}" for n in range(6)]
    rows = np.array([count - 1, 0, ROWS_IN_MEMORY, 3])
    assert [record["n"] for record in spool.records(rows)] == rows.tolist()
    assert spool.asked(rows) == [f"asked é{n}" for n in rows]
    assert [line.decode()[-9:] for line in spool.lines([6])] == ['éxxxxxx"}']


def test_another_process_would_read_the_same(tmp_path: Path) -> None:
    fill(tmp_path, 10).close()
    again = Spool(tmp_path)
    assert [record["n"] for record in again.records(range(10))] == list(range(10))
    assert again.labels == [f"label {n}" for n in range(5)]


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    spool = fill(tmp_path, 0)
    assert (len(spool), spool.labels, list(spool.lines([])), spool.asked([])) == (0, [], [], [])
