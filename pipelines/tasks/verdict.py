"""What a verifier says of one completion."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.dataset.row import Row


class VerifierFailed(Exception):
    """The verifier itself failed (its sandbox is gone, a server doesn't answer): nothing is known of the answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`parsed` is the answer as the verifier read it, None where it found none."""

    correct: bool
    parsed: str | None


Verify = Callable[[str, Row], Verdict]
