"""One subject asked everything: its replies become records."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipelines.evaluation.ask import Ask, alone, samples
from pipelines.evaluation.record import HELDOUT, Record
from pipelines.progress import meter
from pipelines.subjects.confidence import Asked, Method, Told, confidences
from pipelines.subjects.endpoint import EndpointSubject
from pipelines.subjects.inquiry import Inquiry
from pipelines.subjects.memory import peak_memory
from pipelines.subjects.playing import PlayingSubject
from pipelines.subjects.subject import Question, Reply, Subject


@dataclass(frozen=True)
class Answers:
    """A subject's records, its clock (seconds, tokens, answers, gigabytes), and how its confidence was had.

    `about` is what the subject says of itself once it has answered.
    """

    records: list[Record]
    about: dict[str, str]
    clock: dict[str, float]
    told: Told


def inquire(subject: Subject, inquiry: Inquiry, method: Method, device: str) -> Answers:
    """Asks the subject everything of the inquiry."""
    limit = inquiry.settings.max_new_tokens
    with peak_memory(device) as peak:
        begun = time.perf_counter()
        with meter(f"answers of {subject.name}", len(inquiry.asks), "rows") as shown:
            replies = subject.answer(_questions(inquiry.asks), limit, shown.advance)
        seconds = time.perf_counter() - begun
        asked = Asked(subject, inquiry.judged, inquiry.labels, inquiry.weighed, limit)
        records = inquiry.judged.records(inquiry.asks, subject.name, replies)
        count = len(inquiry.rows)
        read = [record.parsed for record in records[:count]]
        told = confidences(asked, method, inquiry.rows, replies[:count], read, inquiry.validation)
        records = [*_told(_scored(records, inquiry), told), *told.validation]
        records += _records(subject, inquiry, alone(inquiry.rows, inquiry.settings, inquiry.seed))
        records += _records(subject, inquiry, samples(inquiry.rows, inquiry.settings))
    clock = {
        "batch_seconds": seconds,
        "batch_tokens": float(sum(reply.num_tokens or 0 for reply in replies)),
        "batch_answers": float(len(replies)),
        "peak_memory_gb": peak.gb,
    }
    asked_of = subject.inner if isinstance(subject, PlayingSubject) else subject
    if isinstance(asked_of, EndpointSubject):
        clock["spent"] = asked_of.endpoint.spent
    return Answers(records, dict(subject.about), clock, told)


def _questions(asks: Iterable[Ask]) -> list[Question]:
    return [Question(ask.messages, ask.tools, ask.row) for ask in asks]


def _scored(records: Sequence[Record], inquiry: Inquiry) -> list[Record]:
    """Held-out records with the rows' further metrics."""
    rows = {row.id: row for row in inquiry.rows}
    return [
        replace(record, values=inquiry.scorer(record.answer, rows[record.row_id]))
        if record.suite == HELDOUT and record.answer is not None
        else record
        for record in records
    ]


def _told(records: Sequence[Record], told: Told) -> list[Record]:
    """The records, the first of which are the held-out rows', with the confidence in each answer."""
    count = len(told.raw)
    options = told.options or [None] * count
    found = [
        replace(record, confidence=raw, calibrated=after, options=values)
        for record, raw, after, values in zip(records[:count], told.raw, told.calibrated, options, strict=True)
    ]
    return [*found, *records[count:]]


def _records(subject: Subject, inquiry: Inquiry, asks: Sequence[Ask]) -> list[Record]:
    """Records of rows that are asked one at a time, or sampled."""
    if not asks:
        return []
    limit, questions = inquiry.settings.max_new_tokens, _questions(asks)
    with meter(f"{asks[0].suite} of {subject.name}", len(asks), "answers") as shown:
        replies: list[Reply]
        if asks[0].kind:
            temperature = inquiry.settings.pass_at.temperature
            replies = subject.sample(questions, limit, temperature, shown.advance)
        else:
            replies = subject.answer_alone(questions, limit, shown.advance)
    return inquiry.judged.records(asks, subject.name, replies)
