"""What becomes of an answer that a verifier is asked about."""

from dataclasses import dataclass

from pipelines.tasks.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict; or None and how the verifier failed, which says nothing about the answer.

    `failure` begins with its kind: timeout, memory, died, error (it raised, or returned no Verdict) or failed (what it
    runs on is gone).
    """

    verdict: Verdict | None
    failure: str | None

    @property
    def kind(self) -> str | None:
        return None if self.failure is None else self.failure.partition(":")[0]
