"""How sure a subject is of its answers, and the temperature that makes it honest, fitted on validation rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.row import Row
from pipelines.evaluation.ask import Ask, Judged
from pipelines.evaluation.calibration import (
    at_bound,
    fit_scaling,
    fit_temperature,
    softened,
    softened_options,
)
from pipelines.evaluation.record import VALIDATION, Record
from pipelines.progress import meter
from pipelines.subjects.subject import Question, Reply, Subject

Method = Literal["labels", "answer", "verbalised", "none"]
T = TypeVar("T")
MOST_LABELS = 1000  # beyond it the labels' likelihoods cost more than the answers
FEWEST_ROWS = 20  # a temperature of fewer would be noise


@dataclass
class Told:
    """For each held-out row the confidence in its answer, as told and after the temperature; None where unknown.

    `options` are the labels' log-likelihoods by row, `validation` the records that the temperature rests on.
    """

    method: Method
    raw: list[float | None]
    calibrated: list[float | None]
    options: list[list[float] | None] | None = None
    temperature: float | None = None
    validation: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """A subject, how its answers are judged, the labels there are, and the limit of new tokens.

    `weighed` are the ids of the rows whose labels' likelihoods are looked at.
    """

    subject: Subject
    judged: Judged
    labels: Sequence[str]
    weighed: frozenset[str]
    max_new_tokens: int


def resolved(configured: str, labels: Sequence[str], kind: str) -> Method:
    """What the configuration means for a subject: labels have likelihoods where a local model chooses among some."""
    if configured in ("auto", "labels"):
        return "labels" if kind != "endpoint" and 0 < len(labels) <= MOST_LABELS else "answer"
    return cast(Method, configured)


def confidences(
    asked: Asked,
    method: Method,
    rows: Sequence[Row],
    replies: Sequence[Reply],
    read: Sequence[str | None],
    validation: Sequence[Row],
) -> Told:
    """The confidence in each reply, of which the verifier read what `read` holds.

    `validation` are the rows that the temperature is fitted on.
    """
    if method == "none":
        return Told(method, [None] * len(rows), [None] * len(rows))
    if method == "labels":
        return _by_labels(asked, rows, read, validation)
    return _by_answer(asked, method, rows, replies, validation)


def _by_labels(asked: Asked, rows: Sequence[Row], read: Sequence[str | None], validation: Sequence[Row]) -> Told:
    """Softmax over the labels' log-likelihoods; the answer's own label is the one that counts.

    Temperature: Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.
    """
    place = {label: position for position, label in enumerate(asked.labels)}
    chosen = [place.get(label or "") for label in read]
    told = [at for at, label in enumerate(chosen) if label is not None and rows[at].id in asked.weighed]
    if len(told) < FEWEST_ROWS:
        # An untrained base names no label, and the labels' likelihoods take longer than the answers.
        note = f"{asked.subject.name}: no confidence, because only {len(told)} answers are labels"
        return Told("none", [None] * len(rows), [None] * len(rows), notes=[note])
    options = _likelihoods(asked, [rows[at] for at in told], "label likelihoods of")
    known = [row for row in validation if row.answer in place]
    fitted = _likelihoods(asked, known, "validation of")
    truth = np.array([place[row.answer] for row in known], dtype=np.int64)
    temperature = fit_temperature(fitted, truth.tolist()) if len(known) >= FEWEST_ROWS else None
    labels = [int(chosen[at] or 0) for at in told]
    return Told(
        method="labels",
        raw=_spread(_probabilities(options, labels, 1.0), told, len(rows)),
        calibrated=_spread(_probabilities(options, labels, temperature or 1.0), told, len(rows)),
        options=_spread(options.tolist(), told, len(rows)),
        temperature=temperature,
        validation=[
            replace(record, options=list(values))
            for record, values in zip(_validation(asked, known, None), fitted, strict=True)
        ],
        notes=_notes(asked.subject.name, temperature, len(known)),
    )


def _spread(values: Sequence[T], places: Sequence[int], count: int) -> list[T | None]:
    """The values at their places among `count`, None elsewhere."""
    found: list[T | None] = [None] * count
    for at, value in zip(places, values, strict=True):
        found[at] = value
    return found


def _likelihoods(asked: Asked, rows: Sequence[Row], title: str) -> NDArray[np.float64]:
    questions = [Question(row.prompt, row.tools) for row in rows]
    with meter(f"{title} {asked.subject.name}", len(rows), "rows") as shown:
        return asked.subject.likelihoods(questions, asked.labels, shown.advance)


def _probabilities(options: NDArray[np.float64], labels: Sequence[int], temperature: float) -> list[float]:
    return [float(value) for value in softened_options(options, temperature)[np.arange(len(labels)), labels]]


def _by_answer(
    asked: Asked, method: Method, rows: Sequence[Row], replies: Sequence[Reply], validation: Sequence[Row]
) -> Told:
    """The probability of the answer's tokens, or what the subject says of itself; scaled on the logit."""
    raw = _of_replies(asked, method, rows, replies)
    if not any(value is not None for value in raw):
        note = f"{asked.subject.name}: no confidence, because it gives no probabilities"
        return Told("none", raw, raw, notes=[note])
    questions = [Question(row.prompt, row.tools) for row in validation]
    with meter(f"validation of {asked.subject.name}", len(validation), "rows") as shown:
        answered = asked.subject.answer(questions, asked.max_new_tokens, shown.advance)
    told = _of_replies(asked, method, validation, answered)
    records = [
        replace(record, confidence=value)
        for record, value in zip(_validation(asked, validation, answered), told, strict=True)
    ]
    usable = [(r.confidence, r.correct) for r in records if r.confidence is not None and r.correct is not None]
    temperature = None
    if len(usable) >= FEWEST_ROWS:
        temperature = fit_scaling([p for p, _ in usable], [bool(c) for _, c in usable])
    after = [None if value is None else float(softened([value], temperature or 1.0)[0]) for value in raw]
    return Told(method, raw, after, None, temperature, records, _notes(asked.subject.name, temperature, len(usable)))


def _of_replies(asked: Asked, method: Method, rows: Sequence[Row], replies: Sequence[Reply]) -> list[float | None]:
    if method == "answer":
        return [reply.probability if reply.error is None else None for reply in replies]
    from pipelines.subjects.verbalised import verbalised

    questions = [Question(row.prompt, row.tools) for row in rows]
    with meter(f"confidence of {asked.subject.name}", len(rows), "rows") as shown:
        return verbalised(asked.subject, questions, replies, shown.advance)


def _validation(asked: Asked, rows: Sequence[Row], replies: Sequence[Reply] | None) -> list[Record]:
    """Rows that the temperature rests on; where labels are weighed, nothing is generated."""
    asks = [Ask(VALIDATION, "", row.prompt, row) for row in rows]
    return asked.judged.records(asks, asked.subject.name, replies or [Reply(text=None)] * len(rows))


def _notes(name: str, temperature: float | None, count: int) -> list[str]:
    if temperature is None:
        return [f"{name}: no temperature, because only {count} validation rows can be used (at least {FEWEST_ROWS})"]
    if at_bound(temperature):
        return [f"{name}: the temperature ended at a bound of the search, {temperature:g}; it is no measurement"]
    return []
