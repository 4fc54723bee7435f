"""The rows that are still in: who is left, who was removed and why, step by step."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.context import parted
from pipelines.dataset.normal import normalised
from pipelines.dataset.row import Message, question, text_of
from pipelines.dataset.spool import Spool
from pipelines.preparation.intake import REMOVED, SPLITS

Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
HELDOUT = SPLITS.index("heldout")
AT_ONCE = 2048


class Pool:
    """All rows of a spool; `alive` says who is left, `split` where each belongs by now."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.alive = np.ones(len(spool), bool)
        self.split = spool.column("split")
        self.funnel: list[dict[str, Any]] = []

    @property
    def trains(self) -> Flags:
        """Rows for training or validation that are left."""
        return self.alive & (self.split != HELDOUT)

    @property
    def heldout(self) -> Flags:
        return self.alive & (self.split == HELDOUT)

    def step(self, name: str, removed: int) -> None:
        """Writes down how many rows a step took."""
        self.funnel.append({"step": name, "removed": removed, "rows": int(self.alive.sum())})

    def remove(self, step: str, reasons: Mapping[int, Mapping[str, Any]]) -> None:
        """Takes these rows out and lists each with its reason, in the order of their numbers."""
        rows = sorted(reasons)
        with (self.spool.folder / REMOVED).open("a", encoding="utf-8") as file:
            for row, record in zip(rows, self.spool.records(rows), strict=True):
                listed = {"id": record["id"], "source": record["source"], **reasons[row]}
                file.write(json.dumps({**listed, "text": question(record["prompt"])}, ensure_ascii=False) + "\n")
        self.alive[rows] = False
        self.step(step, len(rows))

    def drop(self, step: str, rows: Sequence[int] | Rows) -> None:
        """Takes these rows out by choice, not for a fault: they are counted, not listed."""
        self.alive[rows] = False
        self.step(step, len(rows))

    def asked(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """What these rows ask, normalised."""
        return self.spool.asked(rows)

    def answered(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """The completions of these rows, calls of tools included, normalised."""
        return [normalised(_said(record["completion"]) or record["answer"]) for record in self.spool.records(rows)]

    def asked_of(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """What these rows ask about their passages, normalised; "" for rows without any."""
        return [
            normalised("\n".join(parted(text_of(m), context)[1] for m in record["prompt"] if m["role"] == "user"))
            if (context := record.get("context"))
            else ""
            for record in self.spool.records(rows)
        ]

    def named(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """`id` and place of these rows, to be shown."""
        return [f"{record['id']} ({record['source']})" for record in self.spool.records(rows)]

    def batches(self, flags: Flags) -> Iterator[Rows]:
        """Numbers of the flagged rows, some at a time."""
        rows = np.flatnonzero(flags)
        for start in range(0, len(rows), AT_ONCE):
            yield rows[start : start + AT_ONCE]


def _said(completion: Sequence[Message]) -> str:
    calls = [json.dumps(m["tool_calls"], sort_keys=True) for m in completion if m.get("tool_calls")]
    return " ".join([*filter(None, map(text_of, completion)), *calls])


def removed_sample(path: Path, count: int) -> list[dict[str, Any]]:
    """The first removed rows of each reason, to be shown."""
    found: list[dict[str, Any]] = []
    shown: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            reason = str(record["reason"]).partition(":")[0]
            shown[reason] = shown.get(reason, 0) + 1
            if shown[reason] <= count:
                found.append(record)
    return found
