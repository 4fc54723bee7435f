"""A teacher at an endpoint: slots that stand free while there is work, and a server that is killed in the middle.

`python -m benchmarks.distillation_endpoint` prints the figures. The server is a process of its own (this file with
`serve`): it answers after 200 to 800 ms and writes down when each request came and when its answer was sent.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONCURRENCY = 16
ROWS, TRIES = 160, 2
AWAY_S = 30.0
KILLED_AT = 0.4  # of all tries
PROBE = "Hi"  # what the client asks to see whether a server is there


@dataclass(frozen=True)
class Seen:
    """A request as the server saw it, in seconds of the machine's clock; `end` None where no answer was sent."""

    key: str
    begin: float
    end: float | None


def measure() -> dict[str, float]:
    """`idle_share`: the share of the time in which fewer than 16 requests were under way while tries waited, 0..1;
    `idle_slots` that of all slots' time; `idle_gap_s`: the longest that a free slot waited for its next request; with
    the server killed for 30 s:
    `rows_lost`, `asked_twice` after an answer had been sent, `rows_duplicated` and `kill_s`, the time it all took.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        steady = run(folder / "steady", (ROWS, TRIES))
        killed = run(folder / "killed", (ROWS, TRIES), AWAY_S)
    share, slots, gap = idle(steady.seen, CONCURRENCY)
    return {
        "num_tries": float(ROWS * TRIES),
        "idle_share": share,
        "idle_slots": slots,
        "idle_gap_s": gap,
        "steady_s": steady.seconds,
        "kill_s": killed.seconds,
        "rows_lost": float(ROWS * TRIES - len(set(killed.answered))),
        "rows_duplicated": float(len(killed.answered) - len(set(killed.answered))),
        "asked_twice": float(asked_again(killed.seen)),
    }


def idle(seen: list[Seen], slots: int) -> tuple[float, float, float]:
    """(share of the time with a free slot, share of the slots' time, longest wait of one in seconds).

    From when the slots had first been filled until the last request was sent; the k-th answer frees the slot that the
    k-th request after the first `slots` takes.
    """
    begins = sorted(one.begin for one in seen)
    ends = sorted(one.end for one in seen if one.end is not None)
    first, last = begins[slots - 1], begins[-1]
    waits = [max(begin - end, 0.0) for begin, end in zip(begins[slots:], ends, strict=False)]
    moments = sorted([(time_, 1) for time_ in begins] + [(time_, -1) for time_ in ends])
    free, slot_time, under_way, before = 0.0, 0.0, 0, first
    for moment, change in moments:
        if first < moment <= last and under_way < slots:
            free += moment - max(before, first)
            slot_time += (slots - under_way) * (moment - max(before, first))
        under_way, before = under_way + change, moment
    return free / (last - first), slot_time / slots / (last - first), max(waits)


def asked_again(seen: list[Seen]) -> int:
    """Requests that came after an answer to the same had been sent."""
    sent: dict[str, float] = {}
    for one in seen:
        if one.end is not None:
            sent[one.key] = min(one.end, sent.get(one.key, one.end))
    return sum(one.begin > sent.get(one.key, float("inf")) for one in seen)


@dataclass(frozen=True)
class Ran:
    """What the server saw, the row and number of each try that has an answer, and how long it took."""

    seen: list[Seen]
    answered: list[str]
    seconds: float


def run(folder: Path, size: tuple[int, int], away_s: float | None = None) -> Ran:
    """Asks (rows, tries at each) at a fresh server, which is killed for `away_s` in the middle."""
    from pipelines.config.compose import compose
    from pipelines.dataset.row import Row
    from pipelines.generation import remote
    from pipelines.subjects.cache import Cache
    from pipelines.subjects.endpoint import Endpoint

    folder.mkdir()
    (num_rows, tries), done = size, 0
    log, port = folder / "log", _free_port()
    teacher = ["teacher.kind=endpoint", f"teacher.at=http://127.0.0.1:{port}/v1", "teacher.model=local"]
    teacher += ["teacher.license={id: CC0-1.0, conditions: null, url: null}", f"teacher.concurrency={CONCURRENCY}"]
    config = compose([*teacher, f"generate.answers={tries}", "generate.max_new_tokens=32"]).config
    asked = [{"role": "user", "content": f"Question {number}"} for number in range(num_rows)]
    rows = [Row(f"{i:016x}", "t", [message], [], "", "", f"f:{i}", str(i)) for i, message in enumerate(asked)]
    endpoint = Endpoint(config.teacher, "teacher", patience_s=config.teacher.patience_s)
    begun = time.monotonic()
    with _Server(port, log) as server, Cache(folder / "cache", "teacher.cache") as cache, _silent():
        endpoint.cache = cache

        def count(number: int) -> None:
            nonlocal done
            done += number
            if away_s is not None and done == int(KILLED_AT * num_rows * tries):
                server.away(away_s)

        found = remote.attempts(config, endpoint, rows, count)
        server.join()
    seconds = time.monotonic() - begun
    return Ran(_read(log), [f"{one.row} {one.number}" for one in found if one.text is not None], seconds)


class _Server(contextlib.AbstractContextManager["_Server"]):
    """The server's process, at one port however often it is started."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self.log = port, log
        self._thread: threading.Thread | None = None
        self._process = self._started()

    def __exit__(self, *told: object) -> None:
        self._process.kill()
        self._process.wait()

    def away(self, seconds: float) -> None:
        """Kills the process, and starts another after so many seconds."""

        def work() -> None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            time.sleep(seconds)
            self._process = self._started()

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _started(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, __file__, "serve", str(self.port), str(self.log)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError(f"no server came up at port {self.port}")
        return process


def _read(log: Path) -> list[Seen]:
    begun: dict[str, tuple[str, float]] = {}
    ended: dict[str, float] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        kind, number, moment, key = line.split(" ", 3)
        if kind == "begin":
            begun[number] = key, float(moment)
        else:
            ended[number] = float(moment)
    return [Seen(key, moment, ended.get(number)) for number, (key, moment) in begun.items() if key != PROBE]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
        yield


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# --- the server ---------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    log_to: Any = None

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing but the log of its own."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked = str(body["messages"][-1]["content"])
        key = asked if asked == PROBE else f"{asked} {body['seed']}"
        number = f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
        self._log("begin", number, key)
        time.sleep(0.2 + 0.6 * int(hashlib.sha256(key.encode()).hexdigest()[:4], 16) / 0xFFFF)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"Answer to {key}"}}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        content = json.dumps({"model": body["model"], "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        # The log is written first: the client may send its next request before another line of this is run.
        self._log("end", number, key)
        self.wfile.write(content)

    def _log(self, kind: str, number: str, key: str) -> None:
        os.write(self.log_to, f"{kind} {number} {time.monotonic():.6f} {key}\n".encode())


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def _serve(port: int, log: str) -> None:
    _Handler.log_to = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    server = _Threads(("127.0.0.1", port), _Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        _serve(int(sys.argv[2]), sys.argv[3])
    else:
        print(json.dumps(measure()))
