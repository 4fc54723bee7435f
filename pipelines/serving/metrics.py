"""What the server counts, in the text that Prometheus reads (exposition format 0.0.4)."""

import threading
from collections import Counter
from collections.abc import Iterator

BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts of one engine: requests waiting and at work, by status, their seconds, their tokens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.waiting = 0
        self.working = 0
        self._by_status: Counter[int] = Counter()
        self._tokens: Counter[str] = Counter()
        self._within: Counter[float] = Counter()
        self._seconds = 0.0

    def enter(self, most: int) -> bool:
        """A request comes to wait; False where `most` wait already."""
        with self._lock:
            # Behind an idle model nobody waits.
            if self.waiting >= most and self.working:
                return False
            self.waiting += 1
            return True

    def begin(self) -> None:
        """The first that waited is at work."""
        with self._lock:
            self.waiting -= 1
            self.working += 1

    def end(self) -> None:
        """It isn't any more."""
        with self._lock:
            self.working -= 1

    def done(self, status: int, seconds: float) -> None:
        """A request that has ended, whatever way."""
        with self._lock:
            self._by_status[status] += 1
            self._seconds += seconds
            self._within.update(limit for limit in BUCKETS_S if seconds <= limit)

    def spent(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Tokens of an answer."""
        with self._lock:
            self._tokens.update({"prompt": prompt_tokens, "answer": answer_tokens})

    def text(self) -> str:
        """All of it."""
        with self._lock:
            return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _gauge("tunesmith_queue_depth", "Requests that wait for the model.", self.waiting)
        yield from _gauge("tunesmith_requests_working", "Requests that the model works on.", self.working)
        yield from _head("tunesmith_requests_total", "Requests that have ended, by HTTP status.", "counter")
        for status, count in sorted(self._by_status.items()):
            yield f'tunesmith_requests_total{{status="{status}"}} {count}'
        yield from _head("tunesmith_tokens_total", "Tokens of prompts and answers.", "counter")
        for kind in ("prompt", "answer"):
            yield f'tunesmith_tokens_total{{kind="{kind}"}} {self._tokens[kind]}'
        yield from _head("tunesmith_request_seconds", "From a request's arrival to its end.", "histogram")
        for limit in BUCKETS_S:
            yield f'tunesmith_request_seconds_bucket{{le="{limit:g}"}} {self._within[limit]}'
        total = sum(self._by_status.values())
        yield f'tunesmith_request_seconds_bucket{{le="+Inf"}} {total}'
        yield f"tunesmith_request_seconds_sum {self._seconds:.6f}"
        yield f"tunesmith_request_seconds_count {total}"


def _head(name: str, what: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"


def _gauge(name: str, what: str, value: int) -> Iterator[str]:
    yield from _head(name, what, "gauge")
    yield f"{name} {value}"


def serving(named: dict[str, str], swaps: int) -> str:
    """Which version answers to which name, and how often one took over from another."""
    lines = list(_head("tunesmith_serving", "1 for each name and the version behind it.", "gauge"))
    lines += [f'tunesmith_serving{{name="{name}",version="{version}"}} 1' for name, version in sorted(named.items())]
    lines += _head("tunesmith_swaps_total", "Versions that took over from another one.", "counter")
    return "\n".join([*lines, f"tunesmith_swaps_total {swaps}"]) + "\n"
