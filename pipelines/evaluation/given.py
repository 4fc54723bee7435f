"""What is wrong with a file that a user wrote, one line a mistake: the field, what was expected and what was found."""

from collections.abc import Iterator

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.config.nearest import did_you_mean
from pipelines.config.validate import EXPECTED


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each mistake; a field that is missing because its name was mistyped is told once."""
    found = error.errors()
    unknown = {str(item["loc"][0]) for item in found if item["type"] == "extra_forbidden"}
    guesses = {name: did_you_mean(name, model.model_fields) for name in unknown}
    return list(_lines(found, guesses))


def _lines(found: list[ErrorDetails], guesses: dict[str, str]) -> Iterator[str]:
    for item in found:
        field = ".".join(str(part) for part in item["loc"] if not _is_tag(part))
        if item["type"] == "extra_forbidden":
            yield f"{field}: unknown field{guesses[field]}"
        elif item["type"] == "missing":
            if not any(guess.endswith(f" {field}") for guess in guesses.values()):
                yield f"{field}: missing; a value is required"
        elif item["type"] == "value_error":
            yield f"{field}: {item['ctx']['error']}".removeprefix(": ")
        else:
            yield f"{field}: expected {_expected(item)}, got {item['input']!r}".removeprefix(": ")


def _is_tag(part: int | str) -> bool:
    """Whether pydantic added it to the location: the member of a union that it tried."""
    return isinstance(part, str) and (part in ("str", "constrained-str") or "[" in part)


def _expected(item: ErrorDetails) -> str:
    if item["type"] == "string_pattern_mismatch":
        return f"text of the form {item['ctx']['pattern']}"
    if item["type"] == "too_short":
        return f"{item['ctx']['min_length']} or more entries"
    return EXPECTED.get(item["type"]) or item["msg"].removeprefix("Input should be ").lower()
