"""What is wrong with a task's source files, gathered over all of them before anything fails."""

from collections.abc import Callable

from pipelines.errors import DataError


class Defects:
    """Keeps the first `max_reported` defects as text and counts the rest.

    Two sources may read one file, so a defect that is found twice counts once.
    """

    def __init__(self, max_reported: int) -> None:
        self._max_reported = max_reported
        self._found: set[tuple[str, int | None, str]] = set()
        self._reported: list[str] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: str, line: int | None, reason: str, hint: Callable[[], str] | None = None) -> None:
        """One defect; `line` is None where the file as a whole is meant.

        `hint` gives the end of the reason and is called only for a defect that will be shown: to find
        the nearest label takes longer than to read the row.
        """
        if (path, line, reason) in self._found:
            return
        self._found.add((path, line, reason))
        if len(self._reported) < self._max_reported:
            place = path if line is None else f"{path}:{line}"
            self._reported.append(f"{place}: {reason}" + (hint() if hint else ""))

    def raise_if_any(self) -> None:
        """Raises one DataError with a line per reported defect and the total count."""
        if not self._found:
            return
        shown, total = len(self._reported), len(self._found)
        counted = f"{total} defect" + ("s" if total > 1 else "") + " in the source files"
        if shown < total:
            counted += f", the first {shown} shown"
        raise DataError("\n".join([*self._reported, counted]))
