"""A teacher at an endpoint: as many rows, or episodes, at once as it allows, every answer in the cache as it comes."""

from collections.abc import Callable, Sequence

from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.generation.attempt import Attempt
from pipelines.generation.episodes import Stage, Taken, told_of
from pipelines.subjects.completion import Asking
from pipelines.subjects.endpoint import Endpoint, Speak, position_of
from pipelines.subjects.subject import Question, Reply


def attempts(config: Config, endpoint: Endpoint, rows: Sequence[Row], done: Callable[[int], None]) -> list[Attempt]:
    """`generate.answers` tries at each row, row by row.

    A request's seed and its key in the cache hang on the question and the number of the try alone, so a row is asked
    the same, whatever other rows are. An episode asks turn by turn, by itself. What the spending limit doesn't allow
    is a try that is `unasked`. Raises UserError or Unreachable as `Endpoint.converse` does.
    """
    settings, stage = config.generate, Stage.of(config.task)
    asking = Asking(settings.max_new_tokens, settings.temperature or 0.0, config.seed)
    wanted = [(row, number) for row in rows for number in range(settings.answers or 1)]
    found: dict[int, Attempt] = {}

    def take(place: int, attempt: Attempt) -> None:
        found[place] = attempt
        done(1)

    endpoint.converse([_talk(row, number, asking, stage) for row, number in wanted], asking, take)
    return [found[place] for place in range(len(wanted))]


def _talk(row: Row, number: int, asking: Asking, stage: Stage | None) -> Callable[[Speak], Attempt]:
    first = Question(row.prompt, row.tools if stage is None else stage.tools)
    seed = asking.seed + position_of(first, number) if asking.temperature else asking.seed

    def talk(speak: Speak) -> Attempt:
        taken = Taken()

        def turn(questions: list[Question], _: int) -> list[Reply]:
            taken.replies.append(speak(questions[0], number))
            return taken.replies[-1:]

        if stage is None:
            turn([first], 0)
            return taken.attempt(row, number, seed)
        (played,) = stage.play([row], turn)
        return taken.attempt(row, number, seed, **told_of(played))

    return talk
