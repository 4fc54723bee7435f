"""From a task's source records to its rows."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Source, Task
from pipelines.dataset.defects import Defects
from pipelines.dataset.overlap import normalised
from pipelines.dataset.read import Record, read_source
from pipelines.dataset.row import Message, Row
from pipelines.dataset.split import sample
from pipelines.errors import UserError
from pipelines.tasks.label import known_labels
from pipelines.tasks.verdict import Verdict, Verify


@dataclass(frozen=True, slots=True)
class SourceRows:
    """The rows kept of one source, and how many records were read."""

    source: Source
    num_read: int
    rows: list[Row]


def build_rows(task: Task, seed: int, defects: Defects) -> dict[str, SourceRows]:
    """The rows of every source by its name; what is wrong in the files goes to `defects`.

    Rows are made in the order of the sources' names, so ids depend on no other order. Raises
    UserError where the task itself contradicts its labels.
    """
    labels = known_labels(task)
    _check_task(task, labels)
    maker = _Maker(task, system_messages(task.instruction, labels))
    return {name: _read(maker, task.sources[name], labels, seed, defects) for name in sorted(task.sources)}


def system_messages(instruction: str | None, labels: list[str] | None) -> list[Message]:
    """The system message, if any; `{labels}` in it becomes the labels, one per line."""
    if instruction is None:
        return []
    if "{labels}" in instruction and labels is None:
        raise UserError("task.instruction: {labels} stands for the labels of task.labels, which is null")
    return [{"role": "system", "content": instruction.replace("{labels}", "\n".join(labels or []))}]


def check_gold(rows: Iterable[Row], verify: Verify, name: str, defects: Defects) -> None:
    """A row whose own answer doesn't pass the task's verify is a defect of its source."""
    for row in rows:
        verdict = verify(row.completion[-1]["content"], row)
        if not isinstance(verdict, Verdict):
            raise UserError(f"task.verify: {name} returned {verdict!r}, expected a Verdict")
        if not verdict.correct:
            path, _, line = row.source.rpartition(":")
            defects.add(path, int(line), f"its own answer {row.answer!r} doesn't pass verify {name}")


@dataclass
class _Maker:
    """Makes rows of records and numbers those that are identical."""

    task: Task
    system: list[Message]
    seen: Counter[str] = field(default_factory=Counter)

    def row(self, record: Record, path: str) -> Row:
        identity = [self.task.name, record.prompt, record.answer, path]
        ordinal = self.seen[key := json.dumps(identity)]
        self.seen[key] += 1
        return Row(
            id=_short_hash(json.dumps([*identity, ordinal])),
            task=self.task.name,
            prompt=[*self.system, {"role": "user", "content": record.prompt}],
            completion=[{"role": "assistant", "content": record.answer}],
            answer=record.answer,
            label=record.answer,
            source=f"{path}:{record.line}",
            group=_short_hash(normalised(record.prompt)),
        )


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(maker: _Maker, source: Source, labels: list[str] | None, seed: int, defects: Defects) -> SourceRows:
    records = list(read_source(source, defects))
    kept = [record for record in records if record.label not in source.exclude]
    _check_exclude(source, records, defects)
    if labels is not None:
        _check_answers(source, kept, labels, defects)
    rows = [maker.row(record, source.path) for record in kept]
    if source.limit is not None:
        rows = sample(rows, source.limit, seed)
    return SourceRows(source, len(records), rows)


def _check_exclude(source: Source, records: list[Record], defects: Defects) -> None:
    """A label to leave out that no record has is a mistyped one."""
    held = {record.label for record in records}
    for label in source.exclude if held else []:
        if label not in held:
            reason = f"exclude: no record has the label {label!r}"
            defects.add(source.path, None, reason, partial(did_you_mean, label, held))


def _check_answers(source: Source, records: list[Record], labels: list[str], defects: Defects) -> None:
    known = frozenset(labels)
    for record in records:
        if record.answer not in known:
            hint = partial(did_you_mean, record.answer, labels)
            defects.add(source.path, record.line, f"no label {record.answer!r}", hint)


def _check_task(task: Task, labels: list[str] | None) -> None:
    """Raises UserError where a split has no source or a constant answer is no label."""
    splits = {source.split for source in task.sources.values()}
    for split in ("train", "heldout"):
        if split not in splits:
            raise UserError(f"task.sources: no source has split: {split}")
    for name, source in task.sources.items():
        constant = source.constant_answer
        if constant is not None and labels is not None and constant not in labels:
            raise UserError(
                f"task.sources.{name}.constant_answer: no label {constant!r}{did_you_mean(constant, labels)}"
            )
