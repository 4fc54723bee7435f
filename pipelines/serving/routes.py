"""Names that requests call, and the versions behind them: moved at once, and left when the last answer is out."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Routes:
    """Which version each name means. A request keeps the version that it began with."""

    def __init__(self, behind: dict[str, str]) -> None:
        self._changed = threading.Condition()
        self._behind = dict(behind)
        self._open: Counter[str] = Counter()
        self.swaps = 0

    def named(self) -> dict[str, str]:
        """Each name's version."""
        with self._changed:
            return dict(self._behind)

    def move(self, name: str, version: str) -> None:
        """From now on the name means another version."""
        with self._changed:
            self._behind[name] = version
            self.swaps += 1

    @contextmanager
    def taken(self, name: str) -> Iterator[str | None]:
        """The version behind a name while a request is under way; None where there is none."""
        with self._changed:
            version = self._behind.get(name)
            if version is not None:
                self._open[version] += 1
        try:
            yield version
        finally:
            with self._changed:
                if version is not None:
                    self._open[version] -= 1
                self._changed.notify_all()

    def drained(self, version: str, limit_s: float) -> bool:
        """Waits until no request is under way at a version; False where some are after `limit_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open[version], limit_s)
