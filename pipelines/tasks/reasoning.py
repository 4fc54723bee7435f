"""Problems of reasoning-gym, each judged by the scorer of its own data set, behind a check of what it is given.

The library's scorers were written to be kind: several run an answer as Python (`eval`, sympy's `parse_expr`), give
full marks to a text that merely begins or ends right, or count any answer to some problems as right. So an answer that
isn't the data set's own, word for word, reaches a scorer only where another one can be right, and only in the form that
the problem asks for; everywhere else it is wrong.
"""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pipelines.config.schema import Task
from pipelines.dataset.generators import reasoning as generators
from pipelines.dataset.row import Row
from pipelines.errors import DataError, UserError
from pipelines.tasks.expression import Expression, polynomial
from pipelines.tasks.verdict import Verdict, Verify

ENTRY = "entry"
_OPEN, _CLOSE = "<answer>", "</answer>"
_LONGEST = 4000  # characters of an answer that a scorer is asked about

_UNSIGNED = r"\d{1,20}(?:\.\d{1,20})?"
_NUMBER = rf"[-+]?{_UNSIGNED}"
_GROUPED = r"[-+]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,15})(?:\.\d{1,15})?"
_FACTOR = r"(?:\d{1,12}|[A-Za-z](?:\*\*\d{1,2})?)"
_MONOMIAL = rf"{_FACTOR}(?:\*{_FACTOR}|/\d{{1,12}}){{0,8}}"
_POLYNOMIAL = rf"-? ?{_MONOMIAL}(?: ?[-+] ?{_MONOMIAL}){{0,40}}"
_WORD = r'"[a-z]{1,30}"'
_WORDS = rf"\[{_WORD}(?:, ?{_WORD}){{0,40}}\]"
_MOVE = r'"(?:(?:fill|empty) [A-Z]|pour [A-Z]->[A-Z])"'
_KNIGHT = r'"[wB],[A-Z]\d{1,2},[A-Z]\d{1,2}"'
_IS_A = r"[A-Z][a-z]{1,20} is an? [a-z]{1,20}"
_SUM = r"[-+*/() \d]{1,120}"

# What another right answer may look like, by data set; a scorer sees nothing else.
_FORMS = {
    "advanced_geometry": rf"{_NUMBER}°?|\({_NUMBER}, ?{_NUMBER}\)",
    "bitwise_arithmetic": r"-?0x[0-9a-fA-F]{1,40}",
    "chain_sum": _GROUPED,
    "coin_flip": rf"{_UNSIGNED}|\d{{1,15}}/\d{{1,15}}",
    "complex_arithmetic": rf"{_NUMBER}|{_NUMBER}i|{_NUMBER} ?[-+] ?{_UNSIGNED}i",
    "countdown": _SUM,
    "cryptarithm": r"[A-Z]=\d(?:, ?[A-Z]=\d){0,25}",
    "decimal_arithmetic": _NUMBER,
    "decimal_chain_sum": _NUMBER,
    "fraction_simplification": r"\$?\d{1,15}/\d{1,15}\$?|\$?\\d?frac\{\d{1,15}\}\{\d{1,15}\}\$?",
    "graph_color": r'\{"\d{1,3}": ?\d{1,3}(?:, ?"\d{1,3}": ?\d{1,3}){0,200}\}',
    "group_anagrams": rf"\[{_WORDS}(?:, ?{_WORDS}){{0,40}}\]",
    "gsm_symbolic": _UNSIGNED,
    "jugs": rf"\[{_MOVE}(?:, ?{_MOVE}){{0,100}}\]",
    "kakurasu": r"[01](?: [01]){0,20}(?:\n[01](?: [01]){0,20}){0,20}",
    "knight_swap": rf"\[{_KNIGHT}(?:, ?{_KNIGHT}){{0,100}}\]",
    "knights_knaves": rf"{_IS_A}(?:,? and {_IS_A}|, {_IS_A}){{0,10}}\.?",
    "n_queens": r"[Q_](?: [Q_]){0,20}(?:\n[Q_](?: [Q_]){0,20}){0,20}",
    "number_format": rf"{_GROUPED}(?:e[-+]?\d{{1,2}})?",
    "palindrome_generation": r"[a-z]{1,100}",
    "palindrome_partitioning": rf"\[{_WORDS}(?:, ?{_WORDS}){{0,100}}\]",
    "polynomial_equations": rf"{_NUMBER}(?:, ?{_NUMBER}){{0,9}}",
    "polynomial_multiplication": _POLYNOMIAL,
    "power_function": rf"{_NUMBER}(?:e[-+]?\d{{1,3}})?",
    "products": _GROUPED,
    "puzzle24": _SUM,
    "quantum_lock": r"[A-C](?: ?→ ?[A-C]){0,100}",
    "rubiks_cube": r"[FBLRUD]w?'?(?: [FBLRUD]w?'?){0,200}",
    "shortest_path": r"(?:up|down|left|right)(?: (?:up|down|left|right)){0,200}",
    "simple_integration": _POLYNOMIAL,
    "sokoban": r"[UDLR]{1,300}",
    "tower_of_hanoi": r"Move disk \d from Peg \d to Peg \d(?:\nMove disk \d from Peg \d to Peg \d){0,70}",
    "word_ladder": r"[A-Za-z]{1,10}(?:, ?[A-Za-z]{1,10}){1,40}",
}
_ALLOWED = {name: re.compile(form, re.ASCII) for name, form in _FORMS.items()}


def verifier(task: Task) -> Verify:
    """A verify that gives an answer full marks or none, as the row's `entry` (what the source kept) lets it judge.

    The answer is what stands between <answer> and </answer>, where anything does; of several different ones none is
    right. Otherwise it is the whole completion, white space around it aside. The task's own scorers are made at once:
    some take longer than a verdict may.
    """
    for source in task.sources.values():
        name = (source.generate or "").removeprefix(f"{generators.PACKAGE}:")
        if name in _ALLOWED:
            with contextlib.suppress(UserError):  # settings that don't hold are told where the source is read
                _scorer(name, json.dumps(source.settings, sort_keys=True))

    def verify(completion: str, row: Row) -> Verdict:
        found = answer_of(completion)
        if found is None:
            return Verdict(correct=False, parsed=None)
        own = any(_written(found) == _written(answer) for answer in row.answers)
        return Verdict(correct=own or _scores(found, row), parsed=found)

    return verify


def answer_of(completion: str) -> str | None:
    """The one answer that a completion gives; None where it gives none, or several that differ."""
    _, *marked = completion.split(_OPEN)
    if not marked:
        return completion.strip() or None
    closed = {answer.strip() for answer, mark, _ in (part.partition(_CLOSE) for part in marked) if mark}
    return (closed.pop() or None) if len(closed) == 1 else None


def _written(text: str) -> list[str]:
    """The words of each line: how many spaces part them says nothing."""
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def _scores(answer: str, row: Row) -> bool:
    """Whether the data set's scorer gives the answer full marks. Raises DataError where the row lacks its entry."""
    entry = _entry(row)
    name = entry["dataset"]
    allowed, holds = _ALLOWED.get(name), _UNCHECKED.get(name)
    if allowed is None or len(answer) > _LONGEST or not allowed.fullmatch(answer):
        return False
    try:
        if holds is not None and not holds(answer, entry):
            return False
    except (ValueError, ZeroDivisionError):  # of the right form, and still no number: 1/0
        return False
    return _scorer(name, json.dumps(entry["settings"], sort_keys=True))(entry, answer) == 1.0


def _entry(row: Row) -> dict[str, Any]:
    text = (row.kept or {}).get(ENTRY)
    if text is None:
        raise DataError(f"row {row.id} ({row.source}) has no {ENTRY!r}; its source needs keep: [{ENTRY}]")
    return {**json.loads(text), "answer": row.answer}


@lru_cache(maxsize=64)
def _scorer(name: str, settings: str) -> Callable[[dict[str, Any], str], float]:
    """Scores an answer to an entry, 0..1, with the settings that the entry was made with."""
    made = generators.dataset(name, json.loads(settings), count=1, seed=0)
    return lambda entry, answer: float(made.score_answer(answer, entry))


# --- what some scorers leave unchecked -----------------------------------------------------------


def _is_close(answer: str, entry: Mapping[str, Any]) -> bool:
    """Upstream's scorer gives full marks to the first digits alone: 0 for 0.65625."""
    return abs(Fraction(answer) - Fraction(entry["answer"])) <= Fraction(1, 10_000)


def _is_24(answer: str, entry: Mapping[str, Any]) -> bool:
    """Upstream's scorer takes any four numbers, and rounds."""
    return _reaches(answer, entry["metadata"]["numbers"], 24)


def _is_target(answer: str, entry: Mapping[str, Any]) -> bool:
    """Upstream's scorer has sympy work it out, which runs it as Python."""
    return _reaches(answer, entry["metadata"]["numbers"], entry["metadata"]["target"])


def _reaches(answer: str, numbers: list[int], target: int) -> bool:
    """Whether the expression uses just these numbers and comes to the target, exactly."""
    used = sorted(map(int, re.findall(r"\d+", answer)))
    return used == sorted(numbers) and Expression(answer).value() == target


def _is_whole(answer: str, entry: Mapping[str, Any]) -> bool:
    """Every vertex once: upstream's scorer leaves further ones alone."""
    pairs = json.loads(answer, object_pairs_hook=list)
    return sorted(int(vertex) for vertex, _ in pairs) == sorted(entry["metadata"]["puzzle"]["vertices"])


def _is_nearest(answer: str, entry: Mapping[str, Any]) -> bool:
    """Upstream's scorer takes any number within a hundredth, which may be another candidate."""
    value, metadata = float(answer.replace(",", "")), entry["metadata"]
    near = min(metadata["candidates"], key=lambda candidate: abs(candidate - value))
    return bool(near == metadata["solution"])


def _are_as_many(answer: str, entry: Mapping[str, Any]) -> bool:
    """What a missing or a further solution costs is a setting upstream, and may be nothing."""
    return len(answer.split(",")) == len(entry["answer"].split(","))


def _is_product(answer: str, entry: Mapping[str, Any]) -> bool:
    return polynomial(answer) == polynomial(entry["answer"])


def _is_integral(answer: str, entry: Mapping[str, Any]) -> bool:
    """Equal but for what doesn't change with the variable."""
    variable = entry["metadata"]["variable"]
    found, own = (
        {powers: factor for powers, factor in polynomial(text).items() if dict(powers).keys() - {"C"}}
        for text in (answer, entry["answer"])
    )
    return found == own and all(name == variable for powers in found for name, _ in powers)


_UNCHECKED: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "coin_flip": _is_close,
    "countdown": _is_target,
    "graph_color": _is_whole,
    "number_format": _is_nearest,
    "polynomial_equations": _are_as_many,
    "polynomial_multiplication": _is_product,
    "puzzle24": _is_24,
    "simple_integration": _is_integral,
}
