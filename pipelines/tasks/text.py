"""Tasks whose answer is a text or a number, and tasks that no program can judge."""

import re

from pipelines.config.schema import Task
from pipelines.dataset.row import Row
from pipelines.tasks.verdict import Verdict, Verify

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(task: Task) -> Verify:
    """A verify that compares the text with each right answer, white space around both aside."""

    def verify(completion: str, row: Row) -> Verdict:
        text = completion.strip()
        return Verdict(correct=any(text == answer.strip() for answer in row.answers), parsed=text or None)

    return verify


def number(task: Task) -> Verify:
    """A verify that compares the number after the last `####`, or else the last number, with each right answer's.

    GSM8K's way of writing worked answers (Cobbe et al. 2021); commas between digits don't count.
    """

    def verify(completion: str, row: Row) -> Verdict:
        found, wanted = last_number(completion), [last_number(answer) for answer in row.answers]
        return Verdict(correct=found is not None and found in wanted, parsed=None if found is None else f"{found:.15g}")

    return verify


def last_number(text: str) -> float | None:
    """The number that a worked answer ends in; None where there is none."""
    found = _NUMBER.findall(text.rpartition("####")[2])
    return float(found[-1].replace(",", "")) if found else None
