"""Harness tasks put to a subject: an example becomes a record of the task's own suite."""

from collections.abc import Iterable, Mapping

from pipelines.config.schema import Config
from pipelines.evaluation.record import Record
from pipelines.progress import meter
from pipelines.subjects.harness import HarnessRow, harness_model, run_tasks
from pipelines.subjects.local import LocalSubject
from pipelines.subjects.subject import Subject

NO_FILTER = "none"  # what lm-eval calls an answer as it is


def harness_records(config: Config, subject: Subject) -> tuple[list[Record], list[str]]:
    """The records of the configured tasks, and notes of what was left out: an endpoint gives no likelihoods."""
    settings = config.evaluate.harness
    if not settings.tasks:
        return [], []
    if not isinstance(subject, LocalSubject):
        return [], [f"{subject.name}: harness tasks left out, because they need a model on this machine"]
    tasks = ", ".join(settings.tasks)
    with meter(f"{tasks} of {subject.name}", None, "requests") as shown, subject.active():
        model = harness_model(
            subject.model, subject.tokenizer, subject.template, subject.batch_size, done=shown.advance
        )
        found = run_tasks(settings, model, config.seed)
    return records(found.rows, subject.name, found.num_fewshot), []


def records(rows: Iterable[HarnessRow], subject: str, num_fewshot: Mapping[str, int]) -> list[Record]:
    """One record an example, with each metric under its filter's name."""
    by_example: dict[tuple[str, int], list[HarnessRow]] = {}
    for row in rows:
        by_example.setdefault((row.task, row.doc_id), []).append(row)
    return [_record(given, subject, num_fewshot.get(task, 0)) for (task, _), given in by_example.items()]


def _record(given: list[HarnessRow], subject: str, num_fewshot: int) -> Record:
    first = given[0]
    return Record(
        suite=first.task,
        subject=subject,
        row_id=str(first.doc_id),
        kind=f"{num_fewshot} shots",
        group=f"{first.task} {first.doc_id}",
        label="",
        source=f"{first.task}:{first.doc_id}",
        kept="{}",
        prompt=first.prompt,
        expected=first.target,
        in_scope=True,
        answer=first.answer,
        parsed=first.parsed,
        correct=None,
        declined=None,
        error=None,
        finished=True,
        prompt_tokens=None,
        num_tokens=None,
        latency_s=None,
        cost=None,
        options=None if first.logliks is None else list(first.logliks),
        values={_name(row): row.value for row in given if row.value is not None},
    )


def _name(row: HarnessRow) -> str:
    return row.metric if row.filter == NO_FILTER else f"{row.metric}_{row.filter}"
