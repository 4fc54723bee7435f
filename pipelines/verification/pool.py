"""Workers that verify: each answer to one of them, a limit on its time, and another worker where one is killed."""

import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.config.schema import Task
from pipelines.config.schema import Verifier as Settings
from pipelines.errors import UserError
from pipelines.tasks import field_of, runs_programs
from pipelines.tasks.verdict import Verdict
from pipelines.verification.forking import START_S, Template
from pipelines.verification.frames import packed, taken
from pipelines.verification.outcome import Outcome
from pipelines.verification.processes import kill_tree

MARGIN_S = 1.0  # over what a sandbox allows a program
SECOND = 0.8  # of the limit, for an answer that is asked again: it costs less than two limits in all
MOST_RESTARTS = 3
_PART = 1 << 20


@dataclass
class _Worker:
    """A worker as its parent sees it; `job` is what it works on, or will as soon as it is ready."""

    pid: int
    template: Template
    connection: socket.socket
    deadline: float
    ready: bool = False
    asked: bool = False
    job: int | None = None
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    received: bytearray = field(default_factory=bytearray)


@dataclass
class _Call:
    """The answers of one call, which of them wait, what became of the others, and which are asked a second time."""

    jobs: Sequence[bytes]
    waiting: deque[int]
    found: dict[int, Outcome] = field(default_factory=dict)
    again: set[int] = field(default_factory=set)


class Pool:
    """`workers` processes that are asked a task's verify.

    They are forked from a template: a process of its own that has imported the verifier, and knows nothing of this
    one's threads, model or GPU. A worker that outlasts its limit is killed with all that it started; another takes its
    place in milliseconds, and is asked once more. `start` raises UserError where there is no verify to ask.
    """

    def __init__(self, task: Task, settings: Settings, name: str | None) -> None:
        self.task, self.settings, self.name = task, settings, name
        self.limit_s = settings.time_s
        if runs_programs(task, name):
            self.limit_s = max(settings.time_s, settings.sandbox.wall_s + MARGIN_S)
        self.num_retried = 0
        self._num_restarts = 0
        self._template: Template | None = None
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def start(self) -> None:
        """Starts the template and the workers; returns when all of them are ready."""
        try:
            self._template = Template(self.task, self.settings, self.name)
            self._workers = [self._forked(None) for _ in range(self.settings.workers)]
            while not all(worker.ready for worker in self._workers):
                self._turn(_Call([], deque()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends workers, template and whatever they started."""
        for worker in self._workers:
            kill_tree(worker.pid)
            worker.connection.close()
        self._workers = []
        if self._template is not None:
            template, self._template = self._template, None
            template.close()
        self._selector.close()

    def ask(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """What becomes of each answer, in their order. The calling thread waits without the interpreter's lock."""
        if self._template is None:
            raise RuntimeError("the workers have ended")
        jobs = [packed({"completion": text, "row": row}) for text, row in zip(completions, rows, strict=True)]
        call = _Call(jobs, deque(range(len(jobs))))
        try:
            while len(call.found) < len(jobs):
                self._hand_out(call)
                self._turn(call)
        except BaseException:
            self.close()  # workers that are busy with answers of this call can't be asked about others
            raise
        return [call.found[number] for number in range(len(jobs))]

    def _hand_out(self, call: _Call) -> None:
        for worker in self._workers:
            if worker.job is None and call.waiting:
                worker.job = call.waiting.popleft()
            if worker.ready and worker.job is not None and not worker.asked:
                limit = self.limit_s * (SECOND if worker.job in call.again else 1.0)
                worker.asked, worker.deadline = True, time.monotonic() + limit
                worker.unsent = memoryview(call.jobs[worker.job])
                self._selector.modify(worker.connection, selectors.EVENT_READ | selectors.EVENT_WRITE, worker)

    def _turn(self, call: _Call) -> None:
        """Waits until a worker can be talked to or has had its time, and does what follows."""
        first = min(worker.deadline for worker in self._workers)
        for key, events in self._selector.select(max(first - time.monotonic(), 0.0)):
            worker: _Worker = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    self._write(worker)
                if events & selectors.EVENT_READ:
                    self._read(worker, call)
            except ConnectionError:
                self._failed(worker, call, "died")
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.deadline <= now:
                self._failed(worker, call, "timeout")

    def _write(self, worker: _Worker) -> None:
        worker.unsent = worker.unsent[worker.connection.send(worker.unsent[:_PART]) :]
        if not worker.unsent:
            self._selector.modify(worker.connection, selectors.EVENT_READ, worker)

    def _read(self, worker: _Worker, call: _Call) -> None:
        part = worker.connection.recv(_PART)
        if not part:
            raise ConnectionError
        worker.received += part
        if (told := taken(worker.received)) is None:
            return
        self._running.check(told)
        if not worker.ready:
            worker.ready, worker.deadline = True, float("inf")
        elif worker.job is None:
            raise ConnectionError  # it speaks without being asked
        elif "failure" in told:
            self._failed(worker, call, str(told["failure"]))
        else:
            call.found[worker.job] = Outcome(Verdict(told["correct"], told["parsed"]), None)
            worker.job, worker.asked, worker.deadline = None, False, float("inf")

    def _failed(self, worker: _Worker, call: _Call, failure: str) -> None:
        """Replaces the worker; its answer is asked once more, of the new one, or has no verdict."""
        self._selector.unregister(worker.connection)
        worker.connection.close()
        ended = self._ended(worker)
        if not worker.ready and ended is not None:
            raise UserError(f"{field_of(self.name)}: a worker ended before it could verify: {failure} ({ended})")
        job = worker.job
        if job is not None and job in call.again:
            call.found[job] = Outcome(None, f"died: {ended or 'its template'}" if failure == "died" else failure)
            job = None
        elif job is not None:
            call.again.add(job)
            self.num_retried += 1
        self._workers[self._workers.index(worker)] = self._forked(job)

    def _ended(self, worker: _Worker) -> str | None:
        """Ends the worker and says how it did; None where it went with the template that it was forked from."""
        if worker.template is not self._template:
            return None
        kill_tree(worker.pid)
        try:
            return self._running.reap(worker.pid)
        except OSError:
            self._restart()
            return None

    def _forked(self, job: int | None) -> _Worker:
        try:
            pid, connection = self._running.fork()
        except OSError:
            self._restart()
            pid, connection = self._running.fork()
        worker = _Worker(pid, self._running, connection, time.monotonic() + START_S, job=job)
        self._selector.register(connection, selectors.EVENT_READ, worker)
        return worker

    def _restart(self) -> None:
        """Another template for one that was killed. Raises UserError where that goes on."""
        self._num_restarts += 1
        if self._num_restarts > MOST_RESTARTS:
            raise UserError(
                f"{field_of(self.name)}: the process that verifiers are forked from was killed {self._num_restarts} "
                "times; is the machine out of memory?"
            )
        self._running.close()
        self._template = Template(self.task, self.settings, self.name)

    @property
    def _running(self) -> Template:
        if self._template is None:
            raise RuntimeError("the workers have ended")
        return self._template
