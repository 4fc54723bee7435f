"""Answers judged outside the process that trains: what a model writes can't hang it, fill its memory or end it.

Verifiers that are linear in the answer and can't fail are asked where they are.
"""

from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from pipelines.config.schema import Task
from pipelines.config.schema import Verifier as Settings
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.tasks import field_of, is_isolated, resolve_verify
from pipelines.tasks.verdict import Verify
from pipelines.verification.outcome import Outcome
from pipelines.verification.pool import Pool

__all__ = ["Counts", "Outcome", "Verification", "verification"]

RECENT = 200  # answers over which the share of failures is taken
FEWEST = 20  # answers of which a share says something
SHOWN = 80


@dataclass
class Counts:
    """Answers asked about, those left without a verdict (`kinds`: by how), and those asked about twice."""

    total: int = 0
    failed: int = 0
    retried: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


class Verification(AbstractContextManager["Verification"]):
    """A task's verify, asked about many answers at once; `counts` says how that went.

    A context: entering it starts what it needs, and raises UserError where the verify can't be made.
    """

    def __init__(self, asked: Verify | Pool, field: str, max_failed: float) -> None:
        self._asked, self._field, self._max_failed = asked, field, max_failed
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self.counts = Counts()

    def __enter__(self) -> Self:
        if isinstance(self._asked, Pool):
            self._asked.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._asked, Pool):
            self._asked.close()

    def check(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Outcome]:
        """What the verifier says of each answer to its row, in their order.

        Raises UserError where more than `max_failed` of the answers have no verdict: of the last RECENT, or of this
        call's if they are more, once there are FEWEST. Early failures so weigh as much as late ones, a verifier that
        breaks in a long run is noticed, and the order of answers within a call doesn't matter.
        """
        if isinstance(self._asked, Pool):
            found = self._asked.ask(completions, [row.as_dict() for row in rows])
            self.counts.retried = self._asked.num_retried
        else:
            verify = self._asked
            found = [Outcome(verify(text, row), None) for text, row in zip(completions, rows, strict=True)]
        self._count(found)
        self._check_share(found, completions, rows)
        return found

    def _count(self, found: Sequence[Outcome]) -> None:
        kinds = [outcome.kind for outcome in found if outcome.kind is not None]
        self.counts.total += len(found)
        self.counts.failed += len(kinds)
        self.counts.kinds.update(kinds)

    def _check_share(self, found: Sequence[Outcome], completions: Sequence[str], rows: Sequence[Row]) -> None:
        failed = [outcome.failure is not None for outcome in found]
        self._recent.extend(failed)
        considered = failed if len(failed) > RECENT else self._recent
        if len(considered) < FEWEST or sum(considered) <= self._max_failed * len(considered) or True not in failed:
            return
        last = len(failed) - 1 - failed[::-1].index(True)
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.kinds.most_common())
        raise UserError(
            f"{self._field}: {sum(considered)} of the last {len(considered)} answers have no verdict, more than "
            f"verifier.max_failed={self._max_failed:g} (in all {kinds}). The last: row {rows[last].id}, "
            f"{completions[last][:SHOWN]!r}: {found[last].failure}. Mend the verifier, or give it more with "
            "verifier.time_s or verifier.memory_mb"
        )


def verification(task: Task, settings: Settings, name: str | None = None) -> Verification:
    """The task's verify (or another by `name`: its audit), in workers where it has to be isolated.

    Raises UserError for a name that leads to none.
    """
    asked = Pool(task, settings, name) if is_isolated(task, name) else resolve_verify(task, settings.sandbox, name)
    return Verification(asked, field_of(name), settings.max_failed)
