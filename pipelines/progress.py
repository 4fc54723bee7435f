"""What a user sees while a stage works: bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pipelines.secrets import masked

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FRAMES = 0.1  # a bar drawn for each of a million rows would take longer than the rows
console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line about what happened, without secrets."""
    print(masked(text), flush=True)


class Meter:
    """Counts what is done, of a known total or of none."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self._before = 0
        self._begun = self._told = time.monotonic()
        self._bar: Progress | None = None
        self._note = ""

    def advance(self, count: int, note: str = "") -> None:
        """`count` more are done; `note` is shown beside, such as the loss."""
        self.done += count
        self._note = masked(note)
        now = time.monotonic()
        if now - self._told >= (SECONDS_BETWEEN_FRAMES if self._bar else SECONDS_BETWEEN_LINES):
            self._told = now
            self.show()

    def show(self) -> None:
        """Draws the bar, or says the line."""
        note = self._note
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=note, left=_left(self))
            return
        of = f"/{self.total} {self.unit}, {_left(self)}" if self.total else f" {self.unit}"
        say(f"  {self.title}: {self.done}{of}{note and ', '}{note}")

    def begin_at(self, done: int) -> None:
        """What an earlier attempt had done; it doesn't count for the pace."""
        self.done = self._before = done

    def pace(self) -> float:
        """Units done a second, so far."""
        return (self.done - self._before) / max(time.monotonic() - self._begun, 1e-9)

    def seconds_left(self) -> float:
        """At the pace so far; 0 before anything is done, or where the total is unknown."""
        return (self.total - self.done) / self.pace() if self.pace() and self.total else 0.0


def _left(meter: Meter) -> str:
    seconds = round(meter.seconds_left())
    return f"{seconds // 60}:{seconds % 60:02d} left"


class _Field(ProgressColumn):
    """A text that the task carries."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get(self.name, "")))


@contextlib.contextmanager
def meter(title: str, total: int | None, unit: str) -> Iterator[Meter]:
    """A meter for the block: a bar on a terminal, a line every ten seconds elsewhere."""
    counted = Meter(title, total, unit)
    if not sys.stderr.isatty():
        yield counted
        return
    count = "{task.completed}/{task.total}" if total else "{task.completed:,} " + unit
    columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn(count))
    with Progress(*columns, _Field("left"), _Field("note"), console=console) as bar:
        bar.add_task(title, total=total, left="", note="")
        counted._bar = bar
        yield counted
        counted.show()
