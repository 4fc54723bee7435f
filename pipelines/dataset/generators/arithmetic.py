"""Sums, differences and products of whole numbers, asked in a few ways."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.generators.settings import bounds, known, part
from pipelines.errors import UserError

OPERATIONS = ("+", "-", "*")
PHRASES = ("What is {}?", "Compute {}.", "How much is {}?", "{} =")
SETTINGS = ("operations", "digits", "terms", "negative", "part")
_HELDOUT_OF_256 = 32  # an eighth of all problems
_TRIES = 1000  # problems drawn in vain, after which there are taken to be too few


@dataclass(frozen=True, slots=True)
class _Kind:
    operations: Sequence[str]
    digits: tuple[int, int]
    terms: tuple[int, int]
    negative: bool
    part: str | None


@dataclass(frozen=True, slots=True)
class _Problem:
    """`numbers` with a sign or operation between each two."""

    numbers: tuple[int, ...]
    operations: tuple[str, ...]

    def __str__(self) -> str:
        rest = (f" {sign} {number}" for sign, number in zip(self.operations, self.numbers[1:], strict=True))
        return "".join([str(self.numbers[0]), *rest])

    def products(self) -> list[tuple[int, list[int]]]:
        """(sign, factors) of each term."""
        found = [(1, [self.numbers[0]])]
        for operation, number in zip(self.operations, self.numbers[1:], strict=True):
            if operation == "*":
                found[-1][1].append(number)
            else:
                found.append((1 if operation == "+" else -1, [number]))
        return found

    def value(self) -> int:
        total = 0
        for sign, factors in self.products():
            product = sign
            for factor in factors:
                product *= factor
            total += product
        return total

    def key(self) -> str:
        """The problem whatever the order of its terms and factors: 3 + 4 is 4 + 3."""
        return str(sorted((sign, sorted(factors)) for sign, factors in self.products()))


def generate(count: int, seed: int, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """`count` different problems as {prompt, answer}.

    Settings: `operations` of + - * (default + and -), `digits` of a number and `terms` of a problem, each a number or
    [low, high] (default 2), `negative` lets results be so (default false), `part` keeps to one of two parts that
    share no problem, whatever the seeds and the order of the terms. Raises UserError for other settings, and where
    they allow for fewer problems.
    """
    kind = _kind(settings)
    draw, seen = random.Random(seed), set[str]()
    for made in range(count):
        problem = _new(kind, draw, seen)
        if problem is None:
            raise UserError(f"count: these settings give hardly more than {made:,} different problems, got {count:,}")
        yield {"prompt": draw.choice(PHRASES).format(problem), "answer": str(problem.value())}


def _kind(settings: Mapping[str, Any]) -> _Kind:
    known(settings, SETTINGS)
    operations = settings.get("operations", ["+", "-"])
    if not isinstance(operations, list | tuple) or not operations or not set(operations) <= set(OPERATIONS):
        raise UserError(f"settings: operations: expected a list of {' '.join(OPERATIONS)}, got {operations!r}")
    negative = settings.get("negative", False)
    if not isinstance(negative, bool):
        raise UserError(f"settings: negative: expected true or false, got {negative!r}")
    digits, terms = bounds(settings, "digits", 2, 1, 9), bounds(settings, "terms", 2, 2, 9)
    return _Kind(tuple(operations), digits, terms, negative, part(settings))


def _new(kind: _Kind, draw: random.Random, seen: set[str]) -> _Problem | None:
    """A problem that isn't among the seen ones, where one is found soon."""
    for _ in range(_TRIES):
        problem = _problem(kind, draw)
        key = problem.key()
        if key in seen or (problem.value() < 0 and not kind.negative):
            continue
        if kind.part is None or (kind.part == "heldout") == _is_heldout(key):
            seen.add(key)
            return problem
    return None


def _problem(kind: _Kind, draw: random.Random) -> _Problem:
    length = draw.randint(*kind.terms)
    numbers = tuple(_number(draw.randint(*kind.digits), draw) for _ in range(length))
    return _Problem(numbers, tuple(draw.choice(kind.operations) for _ in range(length - 1)))


def _number(digits: int, draw: random.Random) -> int:
    return draw.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _is_heldout(key: str) -> bool:
    return hashlib.sha256(key.encode()).digest()[0] < _HELDOUT_OF_256
