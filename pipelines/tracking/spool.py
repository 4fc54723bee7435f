"""What a run logs goes into a file first, and a thread sends it: a training step never waits for the tracking server.

Of each run there is a file a writer: `<run>.main.jsonl` for the process that opened it, another for a worker that is
attached to it. Only the process that opened the run sends. Nothing is taken out of these files until the run has ended,
so they also say which points a run has when it goes on after its process died.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipelines.progress import say
from pipelines.tracking.sending import Entry, may_pass, send, short

SECONDS_BETWEEN = 1.0  # from one look for entries to the next
LONGEST_PAUSE = 30.0  # after failing calls, which double the pause
SECONDS_OF_SILENCE = 5.0  # of waiting before the user is told
AT_ONCE = 500  # entries
MAIN = "main"


class Spool:
    """A writer's file of one run's entries."""

    def __init__(self, folder: Path, run_id: str, writer: str = MAIN) -> None:
        self.folder, self.run_id, self.writer = folder, run_id, writer
        folder.mkdir(parents=True, exist_ok=True)
        self.past = _past(folder, run_id)
        path = folder / f"{run_id}.{writer}.jsonl"
        _cut_torn_end(path)
        self._stream = path.open("ab", buffering=0)
        self._writing = threading.Lock()
        self._number = 0

    def add(self, entry: Entry) -> None:
        """Keeps an entry; it is sent soon."""
        if entry["kind"] == "metrics" and not (entry := self._without_past(entry))["values"]:
            return
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._writing:
            self._stream.write(line)

    def place_for(self, name: str) -> Path:
        """Where the content of a file that is to be sent can be kept."""
        with self._writing:
            self._number += 1
            number = f"{time.time_ns()}-{self._number}"
        folder = self.folder / "files" / f"{self.writer}-{number}"
        folder.mkdir(parents=True)
        return folder / name

    def next_step(self, prefix: str) -> int:
        """The step after the last one that an earlier start gave a metric of that prefix."""
        return 1 + max((step for name, (step, _) in self.past.items() if name.startswith(prefix)), default=-1)

    def close(self) -> None:
        """Closes the file; what it holds stays."""
        self._stream.close()

    def _without_past(self, entry: Entry) -> dict[str, Any]:
        """Without the points that an earlier start, which got further than its last checkpoint, has given.

        What has no steps is given again where it differs.
        """
        step, kept = entry["step"], {}
        for name, value in entry["values"].items():
            last, had = self.past.get(name, (-1, 0.0))
            if step > last or (step == 0 and last == 0 and value != had):
                kept[name] = value
        return {**entry, "values": kept}


class Sender:
    """The thread that sends what the writers of a run keep, in batches, again and again until it arrives."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder, self.run_id = folder, run_id
        self.refused: Exception | None = None
        self.trouble: Exception | None = None
        self._offsets = _offsets(folder, run_id)
        self._changed = threading.Condition()
        self._wake, self._urgent, self._closed = threading.Event(), False, False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Sends no more."""
        self._closed = True
        self._wake.set()
        # A call to a server that is away may hang; the thread is left to end with it.
        self._thread.join(timeout=0.5)

    def check(self) -> None:
        """Raises what the store said where it refused an entry for good."""
        if self.refused is not None:
            raise self.refused

    def flush(self, patience_s: float) -> int:
        """Waits until everything is sent, at most that many seconds; returns how many entries are left.

        Raises what the store said where it refused one for good.
        """
        begun, told = time.monotonic(), False
        self._urgent = True
        self._wake.set()
        while (left := self.left()) and self.refused is None:
            waited = time.monotonic() - begun
            if waited >= patience_s:
                break
            if waited >= SECONDS_OF_SILENCE and not told:
                told = True
                why = f" ({short(self.trouble)})" if self.trouble else ""
                say(
                    f"  waiting for the tracking server{why}: {left:,} entries to send; "
                    f"at most {patience_s:.0f} s (tracking.patience_s)"
                )
            with self._changed:
                self._changed.wait(min(0.2, max(0.0, patience_s - waited)))
        self.check()
        return left

    def left(self) -> int:
        """Entries that no call has confirmed."""
        return sum(len(_lines(path, self._offsets.get(path.name, 0))) for path in _files(self.folder, self.run_id))

    def _work(self) -> None:
        pause = SECONDS_BETWEEN
        while not self._closed:
            self._wake.wait(min(pause, SECONDS_BETWEEN) if self._urgent else pause)
            self._wake.clear()
            try:
                self.send_all()
            except Exception as error:  # noqa: BLE001  # whatever it is, the main thread has to raise it
                if not may_pass(error):
                    self.refused = error  # `check` and `flush` raise it in the thread that can end the run
                    return
                self.trouble, pause = error, min(2 * pause, LONGEST_PAUSE)
            else:
                self.trouble, pause = None, SECONDS_BETWEEN
            finally:
                with self._changed:
                    self._changed.notify_all()

    def send_all(self) -> None:
        """Sends what there is, once; raises what the first failing call says."""
        for path in _files(self.folder, self.run_id):
            while lines := _lines(path, self._offsets.get(path.name, 0), AT_ONCE):
                self._send(path, lines)

    def _send(self, path: Path, lines: list[bytes]) -> None:
        entries = [json.loads(line) for line in lines]
        try:
            send(self.run_id, entries)
        except Exception as error:
            if may_pass(error):
                raise
            if len(lines) > 1:
                for line in lines:  # up to the one that the store refuses
                    self._send(path, [line])
                return
            self._confirm(path, lines, entries)  # it would be refused again at every start
            raise
        self._confirm(path, lines, entries)

    def _confirm(self, path: Path, lines: list[bytes], entries: list[Entry]) -> None:
        self._offsets[path.name] = self._offsets.get(path.name, 0) + sum(map(len, lines))
        _write_whole(_record(self.folder, self.run_id), json.dumps(self._offsets))
        for entry in entries:
            if entry["kind"] == "file":
                shutil.rmtree(Path(entry["path"]).parent, ignore_errors=True)


def send_left(folder: Path, but: str) -> None:
    """Sends what runs other than `but` have left in `folder`; what their store refuses is dropped, with a line."""
    others = {path.name.partition(".")[0] for path in folder.glob("*.jsonl")} - {but}
    for run_id in sorted(others):
        sender = Sender(folder, run_id)
        if left := sender.left():
            try:
                sender.send_all()
            except Exception as error:
                if may_pass(error):
                    raise
                say(f"  {left:,} entries of run {run_id} are dropped, its store takes them no more: {short(error)}")
        for path in folder.glob(f"{run_id}.*"):
            path.unlink()


def _files(folder: Path, run_id: str) -> list[Path]:
    return sorted(folder.glob(f"{run_id}.*.jsonl"))


def _record(folder: Path, run_id: str) -> Path:
    return folder / f"{run_id}.sent.json"


def _offsets(folder: Path, run_id: str) -> dict[str, int]:
    path = _record(folder, run_id)
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _lines(path: Path, start: int, most: int | None = None) -> list[bytes]:
    """Whole lines from a byte on; a writer may be in the middle of the last one."""
    with path.open("rb") as stream:
        stream.seek(start)
        if most is not None:
            os.fsync(stream.fileno())  # a point that was sent is on the disk too: a power cut makes no second one
        found: list[bytes] = []
        for line in stream:
            if not line.endswith(b"\n") or len(found) == most:
                break
            found.append(line)
    return found


def _cut_torn_end(path: Path) -> None:
    """A line that a dying process didn't finish was never sent."""
    if path.exists():
        whole = sum(map(len, _lines(path, 0)))
        with path.open("r+b") as stream:
            stream.truncate(whole)


def _past(folder: Path, run_id: str) -> dict[str, tuple[int, float]]:
    """Of each metric the last step that an earlier start gave it, and its value there."""
    last: dict[str, tuple[int, float]] = {}
    for path in _files(folder, run_id):
        for line in _lines(path, 0):
            entry: Mapping[str, Any] = json.loads(line)
            if entry["kind"] == "metrics":
                for name, value in entry["values"].items():
                    if entry["step"] >= last.get(name, (-1, 0.0))[0]:
                        last[name] = (entry["step"], value)
    return last


def _write_whole(path: Path, text: str) -> None:
    """Whole or as before, also where the process dies in between."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
