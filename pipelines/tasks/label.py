"""Tasks whose answer is one label, alone on its line."""

import json

from pipelines.config.paths import read_text
from pipelines.config.schema import Task
from pipelines.dataset.row import Row
from pipelines.errors import DataError
from pipelines.tasks.verdict import Verdict, Verify


def known_labels(task: Task) -> list[str] | None:
    """The labels of the task's file and its decline label; None where any answer is allowed."""
    if task.labels is None:
        return None
    labels = _read_labels(task.labels)
    declines = [task.decline_label] if task.decline_label and task.decline_label not in labels else []
    return labels + declines


def _read_labels(path: str) -> list[str]:
    """Raises DataError where the file is no JSON list of labels."""
    text = read_text(path, "task.labels")
    try:
        labels = json.loads(text)
    except ValueError as error:
        raise DataError(f"task.labels: {path}: not JSON: {error}") from error
    if not isinstance(labels, list) or not labels:
        raise DataError(f"task.labels: {path}: expected a list of labels")
    for label in labels:
        if not isinstance(label, str) or not label or label != " ".join(label.split()):
            raise DataError(f"task.labels: {path}: {label!r} is no label: expected one line of text, trimmed")
        if labels.count(label) > 1:
            raise DataError(f"task.labels: {path}: {label!r} occurs {labels.count(label)} times")
    return labels


def verifier(task: Task) -> Verify:
    """A verify that compares exactly with each right answer, after white space around the given one is taken off.

    Upper and lower case differ and nothing is searched for: an answer with a second line or an
    explanation would break the program that reads labels, so it is wrong.
    """
    labels = known_labels(task)
    known = None if labels is None else frozenset(labels)

    def verify(completion: str, row: Row) -> Verdict:
        text = completion.strip()
        parsed = text if (bool(text) if known is None else text in known) else None
        return Verdict(correct=text in row.answers, parsed=parsed)

    return verify
