"""Verifiers as a user writes them, for tests."""

import time

from pipelines.dataset.row import Row
from pipelines.tasks import Verdict


def short(completion: str, row: Row) -> Verdict:
    """Right where the answer has at most 12 characters."""
    return Verdict(len(completion) <= 12, completion[:12] or None)


def anything(completion: str, row: Row) -> Verdict:
    """Right, whatever it is."""
    return Verdict(True, completion)


def even(completion: str, row: Row) -> Verdict:
    """Right where the answer has an even number of characters: a coin's throw, for a model without training."""
    return Verdict(len(completion) % 2 == 0, completion)


def changes_its_mind(completion: str, row: Row) -> Verdict:
    """Takes the first sixteen answers and refuses all later ones, as if the model had learnt to fool the other."""
    _asked.append(completion)
    return Verdict(len(_asked) <= 16, completion)


_asked: list[str] = []


def hangs(completion: str, row: Row) -> Verdict:
    """Never comes back."""
    while True:
        time.sleep(1)


def raises(completion: str, row: Row) -> Verdict:
    """Meets what it doesn't expect in every answer."""
    raise KeyError(completion)
