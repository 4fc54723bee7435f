"""Tasks whose answer is JSON that meets a schema.

An answer is compared before it is held against the schema, and one that is much longer than the right one isn't even
read: so no pattern of the schema is ever run over a text of the model's choosing, and nothing of it is walked that is
deeper or longer than the right answer.
"""

from functools import lru_cache
from typing import Any

from pipelines.config.schema import Task
from pipelines.dataset.json_schema import NotJson, parse, same, validator
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.tasks.verdict import Verdict, Verify

_SPARE = 1000  # characters that white space and escapes may take beyond four times the right answer's


def verifier(task: Task) -> Verify:
    """A verify that takes one JSON value, alone or in one fence, which meets task.json_schema and equals an answer.

    Numbers compare by value, the order of keys doesn't count; a repeated key, NaN and words around it make it no JSON.
    Raises UserError where the schema is missing or none.
    """
    return _verify(task, fence=True)


def strict(task: Task) -> Verify:
    """The same without the fence: what a program reads as it comes."""
    return _verify(task, fence=False)


def _verify(task: Task, fence: bool) -> Verify:
    if task.json_schema is None:
        raise UserError(f"task.json_schema: {task.verify} needs the file of a JSON schema")
    meets = validator(task.json_schema, "task.json_schema")

    def verify(completion: str, row: Row) -> Verdict:
        text = _unfenced(completion.strip()) if fence else completion.strip()
        if len(text) > _SPARE + 4 * max(map(len, row.answers)):
            return Verdict(correct=False, parsed=None)
        given = parse(text)
        if isinstance(given, NotJson):
            return Verdict(correct=False, parsed=None)
        equal = any(same(given, _read(answer)) for answer in row.answers)
        return Verdict(correct=equal and meets.is_valid(given), parsed=text)

    return verify


def _unfenced(text: str) -> str:
    """What stands in the one fence around the whole text; the text where there is none."""
    first, newline, rest = text.partition("\n")
    if first.rstrip() not in ("```json", "```") or not newline or not rest.endswith("\n```"):
        return text
    return rest.removesuffix("\n```")


@lru_cache(maxsize=1024)
def _read(answer: str) -> Any:
    """The right answer; one that is no JSON equals nothing."""
    return parse(answer)
