"""The most memory held while something runs."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

SECONDS_BETWEEN_LOOKS = 0.05


@dataclass
class Peak:
    """Gigabytes (10^9 bytes), known once the block has ended."""

    gb: float = 0.0


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Of the GPU's memory the most that torch held, or of this process's resident memory the most that was seen."""
    found = Peak()
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        yield found
        found.gb = torch.cuda.max_memory_allocated() / 1e9
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(found, ended), daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def _watch(found: Peak, ended: threading.Event) -> None:
    process = psutil.Process()
    while True:
        found.gb = max(found.gb, process.memory_info().rss / 1e9)
        if ended.wait(SECONDS_BETWEEN_LOOKS):
            return
