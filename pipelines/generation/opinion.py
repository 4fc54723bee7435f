"""A language model's yes or no to a teacher's answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.config.teaching import AnswerJudge
from pipelines.evaluation.judge import alone, check_template, fill
from pipelines.subjects.completion import Asking
from pipelines.subjects.endpoint import Endpoint
from pipelines.subjects.subject import Question

FIELD = "generate.judge"
PLACEHOLDERS = ("question", "answer")
MAX_NEW_TOKENS = 16
YES, NO, UNREAD, SILENT = "yes", "no", "unread", "silent"


@dataclass(frozen=True, slots=True)
class Opinion:
    """`said` is YES, NO, UNREAD for a reply that is neither of these words alone, or SILENT for none."""

    said: str
    reply: str


class Judge:
    """Asks `generate.judge`. Raises UserError where its prompt lacks a placeholder or its fields name no endpoint."""

    def __init__(self, settings: AnswerJudge) -> None:
        check_template(settings.prompt, f"{FIELD}.prompt", PLACEHOLDERS)
        self.settings, self.endpoint = settings, Endpoint(settings, FIELD)

    def opinions(self, asked: Sequence[tuple[str, str]], done: Callable[[int], None]) -> list[Opinion]:
        """What it says of each question with its answer, at temperature 0, in their order."""
        prompts = [fill(self.settings.prompt, {"question": question, "answer": answer}) for question, answer in asked]
        questions = [Question([{"role": "user", "content": prompt}]) for prompt in prompts]
        return [
            Opinion(SILENT, str(reply.error)) if reply.text is None else read(reply.text)
            for reply in self.endpoint.ask(questions, Asking(MAX_NEW_TOKENS), done)
        ]


def read(reply: str) -> Opinion:
    """The opinion that a reply is: yes or no alone; space around, bold, a period and "Answer:" before don't count."""
    word = alone(reply).lower()
    return Opinion(word if word in (YES, NO) else UNREAD, reply)
