"""From what a record says to a row of the task."""

import hashlib
import json
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Task
from pipelines.dataset.context import with_context
from pipelines.dataset.defects import Place
from pipelines.dataset.row import Message, Row, question, text_of
from pipelines.dataset.shapes import Draft
from pipelines.environments.calls import transcript
from pipelines.errors import UserError
from pipelines.tasks.label import known_labels
from pipelines.tasks.verdict import Verdict, Verify


def system_messages(instruction: str | None, labels: list[str] | None) -> list[Message]:
    """The system message, if any; `{labels}` in it becomes the labels, one per line."""
    if instruction is None:
        return []
    if "{labels}" in instruction and labels is None:
        raise UserError("task.instruction: {labels} stands for the labels of task.labels, which is null")
    return [{"role": "system", "content": instruction.replace("{labels}", "\n".join(labels or []))}]


class Maker:
    """Makes the rows of a task. Raises UserError where the task itself contradicts its labels."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.labels = known_labels(task)
        self.system = system_messages(task.instruction, self.labels)
        self._known = None if self.labels is None else frozenset(self.labels)
        self._has_labels = task.verify == "label" or self.labels is not None
        _check_constants(task, self.labels)

    def row(self, draft: Draft, place: Place) -> Row:
        """The draft as a row; its id depends on task, prompt, completion and path, not on the line.

        A prompt that doesn't hold its context gets it.
        """
        asked = with_context(draft.prompt, draft.context)
        prompt = asked if asked[0]["role"] in ("system", "developer") else [*self.system, *asked]
        identity = _identity(self.task.name, asked, draft.completion, draft.answer, place.path)
        label = draft.label if draft.label is not None else draft.answer if self._has_labels else ""
        group = draft.group if draft.group is not None else " ".join(question(draft.prompt).casefold().split())
        return Row(
            id=short_hash(json.dumps([*identity, 0])),
            task=self.task.name,
            prompt=prompt,
            completion=draft.completion,
            answer=draft.answer,
            label=label,
            source=str(place),
            group=short_hash(group),
            tools=draft.tools,
            rejected=draft.rejected,
            accepted=draft.accepted,
            context=draft.context,
            kept=draft.kept,
        )

    def numbered(self, row: Row, ordinal: int) -> str:
        """The id of a row that is identical with `ordinal` others before it."""
        asked = [message for message in row.prompt if message not in self.system]
        identity = _identity(self.task.name, asked, row.completion, row.answer, row.source.rpartition(":")[0])
        return short_hash(json.dumps([*identity, ordinal]))

    def unknown_label(self, row: Row) -> str | None:
        """The right answer that is none of the task's labels; None where all are, or any may be."""
        known = self._known
        return None if known is None else next((answer for answer in row.answers if answer not in known), None)

    def nearest_label(self, answer: str) -> str:
        """The end of what is told of an unknown label."""
        return did_you_mean(answer, self.labels or [])


def _identity(task: str, prompt: list[Message], completion: list[Message], answer: str, path: str) -> list[str]:
    """What tells a row from all others. A question with its bare answer keeps the short form of old."""
    if len(prompt) == 1 and (not completion or (len(completion) == 1 and text_of(completion[0]) == answer)):
        return [task, text_of(prompt[0]), answer, path]
    return [task, json.dumps([prompt, completion], sort_keys=True), answer, path]


def short_hash(text: str) -> str:
    """The first 64 bits of the text's sha256, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Gold:
    """Asks a task's verify about its rows' own answers."""

    verify: Verify
    name: str
    plays: bool = False  # in an environment, where an answer is the transcript of all that follows the prompt

    def problem(self, row: Row) -> str | None:
        """Why the row's own answer isn't right; None where it is. Raises UserError for what is no Verdict."""
        own = self._own(row)
        verdict = self._verdict(own, row)
        if not isinstance(verdict, Verdict):
            raise UserError(f"task.verify: {self.name} returned {verdict!r}, expected a Verdict")
        if verdict.correct:
            return None
        shown = own if len(own) <= 80 else f"{own[:80]}..."
        return f"its own answer {shown!r} doesn't pass verify {self.name}"

    def _verdict(self, own: str, row: Row) -> Verdict:
        try:
            return self.verify(own, row)
        except Exception as error:
            if ":" not in self.name:
                raise  # a verifier of ours doesn't raise: that is for us to mend
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"task.verify: {self.name} raised {type(error).__name__}: {error} ({place.filename}:{place.lineno}), "
                f"asked about the own answer of {row.source}"
            ) from error

    def _own(self, row: Row) -> str:
        if self.plays:
            return transcript(row.completion)
        return text_of(row.completion[-1]) if row.completion else row.answer


def check_splits(task: Task, carved: bool) -> None:
    """Raises UserError where no source gives rows to train on, or, unless they are carved out, to hold out."""
    splits = {source.split for source in task.sources.values()}
    for split in ("train",) if carved else ("train", "heldout"):
        if split not in splits:
            hint = "; prepare.heldout.method=hash holds out a part of the others" if split == "heldout" else ""
            raise UserError(f"task.sources: no source has split: {split}{hint}")


def _check_constants(task: Task, labels: list[str] | None) -> None:
    for name, constant in _constants(task):
        if labels is not None and constant not in labels:
            raise UserError(
                f"task.sources.{name}.constant_answer: no label {constant!r}{did_you_mean(constant, labels)}"
            )


def _constants(task: Task) -> Iterator[tuple[str, str]]:
    for name, source in task.sources.items():
        if source.constant_answer is not None:
            yield name, source.constant_answer
