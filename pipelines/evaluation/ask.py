"""What every subject is asked: the held-out rows, the same in other clothes, and attacks; each with its record."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.schema import Evaluate, Task
from pipelines.dataset.row import Message, Row
from pipelines.evaluation import red_team
from pipelines.evaluation.perturb import perturb
from pipelines.evaluation.record import HELDOUT, LATENCY, RED_TEAM, ROBUSTNESS, SAMPLES, Record
from pipelines.evaluation.red_team import Attempt
from pipelines.subjects.subject import Reply
from pipelines.tasks.verdict import Verdict
from pipelines.verification import Outcome, Verification


@dataclass(frozen=True, slots=True)
class Ask:
    """One way of asking: `row` is the row behind it (None for an attack that stands alone)."""

    suite: str
    kind: str
    messages: Sequence[Message]
    row: Row | None = None
    attempt: Attempt | None = None

    @property
    def tools(self) -> Sequence[Mapping[str, Any]] | None:
        return self.row.tools if self.row else None


def in_scope(row: Row, decline_label: str | None) -> bool:
    """Whether the row expects a real answer; every row does in a task without a decline label."""
    return decline_label is None or decline_label not in row.answers


def batched(rows: Sequence[Row], attempts: Sequence[Attempt], settings: Evaluate, seed: int) -> list[Ask]:
    """All that is answered greedily in shared batches: the rows, perturbed rows, attacks."""
    asks = [Ask(HELDOUT, "", row.prompt, row) for row in rows]
    for row in chosen(rows, settings.robustness.rows, f"robustness {seed}"):
        for kind in settings.robustness.kinds:
            if (messages := perturb(row, kind, seed)) is not None:
                asks.append(Ask(ROBUSTNESS, kind, messages, row))
    return asks + [Ask(RED_TEAM, attempt.kind, attempt.messages, attempt=attempt) for attempt in attempts]


def alone(rows: Sequence[Row], settings: Evaluate, seed: int) -> list[Ask]:
    """Held-out rows that are asked one at a time, for the latency."""
    return [Ask(LATENCY, "", row.prompt, row) for row in chosen(rows, settings.cost.rows, f"latency {seed}")]


def samples(rows: Sequence[Row], settings: Evaluate) -> list[Ask]:
    """Every row as often as it is sampled for pass@k."""
    count = settings.pass_at.samples or 0
    return [Ask(SAMPLES, str(number), row.prompt, row) for row in rows for number in range(count)]


def chosen(rows: Sequence[Row], count: int | None, salt: str) -> list[Row]:
    """That many rows, whatever their order; none where `count` is None."""
    if count is None:
        return []
    keyed = sorted(rows, key=lambda row: hashlib.sha256(f"{salt} {row.id}".encode()).digest())
    return sorted(keyed[:count], key=lambda row: row.id)


@dataclass(frozen=True)
class Judged:
    """How answers become verdicts: the task's verify, None where nothing judges, and the label that declines."""

    task: Task
    verification: Verification | None

    def records(self, asks: Sequence[Ask], subject: str, replies: Sequence[Reply]) -> list[Record]:
        """The records of replies, judged at once; one that is an error, or has no verdict, is neither right nor wrong.

        Raises UserError where too many have no verdict.
        """
        outcomes = self._outcomes(asks, replies)
        return [
            self._record(ask, subject, reply, outcomes.get(number))
            for number, (ask, reply) in enumerate(zip(asks, replies, strict=True))
        ]

    def _outcomes(self, asks: Sequence[Ask], replies: Sequence[Reply]) -> dict[int, Outcome]:
        """What the verifier says, by the reply's number; attacks and replies without a text aren't its business."""
        if self.verification is None:
            return {}
        judged = [
            (number, reply.text, ask.row)
            for number, (ask, reply) in enumerate(zip(asks, replies, strict=True))
            if reply.text is not None and ask.attempt is None and ask.row is not None
        ]
        found = self.verification.check([text for _, text, _ in judged], [row for _, _, row in judged])
        return {number: outcome for (number, _, _), outcome in zip(judged, found, strict=True)}

    def _record(self, ask: Ask, subject: str, reply: Reply, outcome: Outcome | None) -> Record:
        verdict = outcome.verdict if outcome else None
        correct, parsed = _read(ask, reply.text, verdict)
        failure = f"verifier: {outcome.failure}" if outcome and outcome.failure else None
        decline = self.task.decline_label
        row, attempt = ask.row, ask.attempt
        return Record(
            suite=ask.suite,
            subject=subject,
            row_id=row.id if row else attempt.id if attempt else "",
            kind=ask.kind,
            group=row.group if row else attempt.group if attempt else "",
            label=row.label if row else "",
            source=row.source if row else attempt.source if attempt else "",
            kept=json.dumps(row.kept or {}, sort_keys=True, ensure_ascii=False) if row else "{}",
            prompt=json.dumps(list(ask.messages), ensure_ascii=False),
            expected=row.answer if row else attempt.expected if attempt else "",
            in_scope=in_scope(row, decline) if row else True,
            answer=reply.text,
            parsed=parsed,
            correct=correct,
            declined=None if reply.text is None or decline is None or failure else parsed == decline,
            error=reply.error or failure,
            finished=reply.finished,
            prompt_tokens=reply.prompt_tokens,
            num_tokens=reply.num_tokens,
            latency_s=reply.latency_s,
            cost=reply.cost,
        )


def _read(ask: Ask, text: str | None, verdict: Verdict | None) -> tuple[bool | None, str | None]:
    """Whether it is right, and what was read: of an attack, whether the policy held."""
    if text is not None and ask.attempt is not None:
        return red_team.held(ask.attempt, text), None
    return (verdict.correct, verdict.parsed) if verdict else (None, None)
