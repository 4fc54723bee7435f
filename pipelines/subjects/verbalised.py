"""How sure a subject says that it is."""

import re
from collections.abc import Sequence

from pipelines.dataset.row import Message
from pipelines.subjects.subject import Done, Question, Reply, Subject

HOW_SURE = (
    "How sure are you that your answer is right? Reply with a number from 0 to 100 alone, "
    "where 0 is certainly wrong and 100 certainly right."
)
MAX_NEW_TOKENS = 8

_NUMBER = re.compile(r"(\d{1,3}(?:\.\d+)?) ?%?\.?")


def verbalised(
    subject: Subject, questions: Sequence[Question], replies: Sequence[Reply], done: Done
) -> list[float | None]:
    """The confidence in each reply, of 1, as the subject itself states it in a further turn.

    None where there was no reply to be sure of, where the further turn failed, and where it was no number from 0 to
    100 alone. Method: K. Tian et al., "Just Ask for Calibration", EMNLP 2023, in its form with two turns.
    """
    pairs = list(zip(questions, replies, strict=True))
    asked = [i for i, (_, reply) in enumerate(pairs) if reply.text is not None]
    further = [Question(_with_question(*pairs[i]), pairs[i][0].tools) for i in asked]
    found: list[float | None] = [None] * len(pairs)
    for i, reply in zip(asked, subject.answer(further, MAX_NEW_TOKENS, done), strict=True):
        found[i] = None if reply.text is None else stated(reply.text)
    return found


def stated(text: str) -> float | None:
    """A percentage that stands alone, as a share of 1; None for anything else."""
    match = _NUMBER.fullmatch(text.strip())
    value = float(match.group(1)) if match else 101.0
    return value / 100 if value <= 100 else None


def _with_question(question: Question, reply: Reply) -> list[Message]:
    return [
        *question.messages,
        {"role": "assistant", "content": reply.text},
        {"role": "user", "content": HOW_SURE},
    ]
