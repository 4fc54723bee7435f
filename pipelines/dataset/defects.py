"""What is wrong with a task's source files, gathered over all of them before anything fails."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from pipelines.errors import DataError

_PARTICULAR = re.compile(r"'[^']*'|\d[\d,.]*|U\+[0-9A-F]{4}|0x[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Place:
    """A file (or table, or trace) as a user knows it, and the line or record in it, from 1."""

    path: str
    line: int | None = None

    def __str__(self) -> str:
        return self.path if self.line is None else f"{self.path}:{self.line}"


class Defects:
    """Keeps the first `max_reported` defects as text and counts the rest.

    Two sources may read one file, so a defect that is found twice counts once. With a `quarantine`, a stream of
    text, defective records are written there, changed by `hide`, and only what is wrong with a file as a whole ends
    the stage.
    """

    def __init__(
        self, max_reported: int, quarantine: IO[str] | None = None, hide: Callable[[Any], Any] = lambda raw: raw
    ) -> None:
        self._max_reported = max_reported
        self._quarantine = quarantine
        self._hide = hide
        self._found: set[int] = set()
        self._records: set[int] = set()
        self._reported: list[tuple[Place, str]] = []
        self._num_ending = 0
        self._last: Place | None = None
        self.num_faulty = 0  # records with a defect, those included that another source has told of already
        self.reasons: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._found)

    @property
    def num_records(self) -> int:
        """Records with a defect."""
        return len(self._records)

    def add(
        self, place: Place, reason: str, hint: Callable[[], str] | None = None, raw: Callable[[], Any] | None = None
    ) -> None:
        """One defect; a place without a line means the file as a whole.

        `hint` gives the end of the reason and is called only for a defect that will be shown: to find
        the nearest label takes longer than to read the row. `raw` gives the record for the quarantine.
        """
        if place.line is not None and place != self._last:
            self.num_faulty += 1
        self._last = place
        key = hash((place, reason))
        if key in self._found:
            return
        self._found.add(key)
        if place.line is not None:
            self._records.add(hash(place))
        if place.line is not None and self._quarantine is not None:
            self.reasons[kind_of(reason)] += 1
            record = {"source": str(place), "reason": reason, "record": self._hide(raw()) if raw else None}
            self._quarantine.write(json.dumps(record, ensure_ascii=True) + "\n")
            return
        self._num_ending += 1
        if len(self._reported) < self._max_reported:
            self._reported.append((place, reason + (hint() if hint else "")))

    def raise_if_any(self, num_accepted: int | None = None) -> None:
        """Raises one DataError with a line per reported defect and the total count.

        With a quarantine only defects of whole files raise. `num_accepted` counts the records without a defect.
        """
        if self._num_ending:
            raise DataError("\n".join([*self._lines(), self._total(num_accepted)]))

    def _lines(self) -> list[str]:
        """The defects that are shown: files in the order in which they came, and each file's by line."""
        paths = list(dict.fromkeys(place.path for place, _ in self._reported))
        ordered = sorted(self._reported, key=lambda item: (paths.index(item[0].path), item[0].line or 0))
        return [f"{place}: {reason}" for place, reason in ordered]

    def _total(self, num_accepted: int | None) -> str:
        counted = f"{self._num_ending:,} defect" + ("s" if self._num_ending > 1 else "")
        if len(self._reported) < self._num_ending:
            counted += f", the first {len(self._reported)} shown,"
        if num_accepted is None or not self._records:
            return f"{counted} in the source files"
        counted += f" in {len(self._records):,} of {len(self._records) + num_accepted:,} records"
        if self._quarantine is not None:
            return counted
        return f"{counted}; mend them, or set prepare.on_error=quarantine to go on without them"


def kind_of(reason: str) -> str:
    """The reason without what is particular to one record: names, numbers, positions."""
    return _PARTICULAR.sub("…", reason.partition(";")[0])
