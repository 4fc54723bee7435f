"""Tasks whose answer is a number or a formula: exact where both are plain numbers, worked out only where they aren't.

The gold answer is what follows the last `####`, or the last box, or the whole of the row's answer. Plain numbers are
compared as fractions. The rest goes to math-verify, without its own timeouts, which need the main thread: the verifier
runs in a worker that has limits of its own.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipelines.config.schema import Task
from pipelines.dataset.row import Row
from pipelines.tasks.final_answer import Answer, final_answer, marks, num_marks
from pipelines.tasks.math_limits import too_much
from pipelines.tasks.plain_number import Plain, read
from pipelines.tasks.verdict import Verdict, Verify

ROUNDING = 12  # decimals in which an approximation must agree; math-verify's own 6 take 3.141593 for pi
SHOWN = 200

_CONSTANT = re.compile(r"(?:[0-9.,+\-*/^(){}\s!%]|\\(?:[dtc]?frac|cdot|times|div|sqrt|left|right|[,;! %]))+")
_TWO_NUMBERS = re.compile(r"[0-9]\s+[0-9]")
_LISTED = re.compile(r"[0-9],(?![0-9]{3}(?![0-9]))")
_SHORT_FRAC = re.compile(r"\\([dtc]?frac)\s*([0-9])\s*([0-9])(?![0-9])")
_EQUALS = re.compile(r"(?<![\\<>!:])=(?!=)")
_NAME = re.compile(r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z, ]+\))?|\\text\{[A-Za-z ]+\}|[A-Za-z][A-Za-z ]*)\s*")
_RELATION = re.compile(r"=|<|>|\\(?:n?eq|leq?|geq?|ne|lt|gt|in|sim|approx|equiv)(?![a-z])")
_INEQUALITY = re.compile(r"<|>|\\(?:leq?|geq?|lt|gt)(?![a-z])")
_DELIMITERS = re.compile(r"^(?:\$\$?|\\\(|\\\[)(.*?)(?:\$\$?|\\\)|\\\])[.,]?$", re.DOTALL)
_LETTER = re.compile(r"[A-Za-z]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LAST_LINE = re.compile(
    r"####\s*(?P<hashed>.+)|\$?\\boxed\{(?P<boxed>.+)\}\$?\.?|(?:the )?(?:final )?answer(?: is|:)\s*(?P<stated>.+?)\.?",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Gold:
    """A right answer as it is written, and the number that it is, if it is one."""

    text: str
    plain: Plain | None


def verifier(task: Task) -> Verify:
    """A verify of the one final answer that a completion names (see `final_answer`); hedges and lists are wrong."""

    def verify(completion: str, row: Row) -> Verdict:
        return _verdict(final_answer(completion), row.answers)

    return verify


def strict(task: Task) -> Verify:
    """The audit of `math`: right only where the last line, and nothing before it, marks the bare answer."""

    def verify(completion: str, row: Row) -> Verdict:
        last = completion.strip().rpartition("\n")[2].strip()
        found = _LAST_LINE.fullmatch(last)
        if found is None or num_marks(completion) != 1:
            return Verdict(correct=False, parsed=None)
        answer = final_answer(completion)
        if answer is None or (answer.plain is not None and not _PLAIN.fullmatch(found[found.lastgroup or 0])):
            return Verdict(correct=False, parsed=None)
        return _verdict(answer, row.answers)

    return verify


def warm() -> None:
    """Imports math-verify and works out a few formulas, so that a process forked from this one is quick at once."""
    for text in (r"\frac{\sqrt{2}}{3} x^2 + 1", r"\{1, 2\}", "[1, 2)", r"x = \pi", "1 < x", r"\text{Mary}"):
        _equal(text, text + " ")


def _verdict(answer: Answer | None, golds: Sequence[str]) -> Verdict:
    if answer is None:
        return Verdict(correct=False, parsed=None)
    shown = str(answer.plain) if answer.plain is not None else answer.text[:SHOWN]
    return Verdict(correct=any(_is(answer, _gold(gold)) for gold in golds), parsed=shown)


@lru_cache(maxsize=8192)
def _gold(answer: str) -> Gold:
    """The answer within a row's answer, which may be a worked solution."""
    found = marks(answer)
    text = found[-1].text.strip() if found else answer.strip()
    return Gold(text, read(text, labelled=False))


def _is(answer: Answer, gold: Gold) -> bool:
    if answer.plain is not None and gold.plain is not None:
        return answer.plain.equals(gold.plain)
    mine, theirs = _formula(answer.text), _formula(gold.text)
    if "".join(mine.split()) == "".join(theirs.split()):
        return True
    if gold.plain is not None:
        mine = _valued(mine)
        is_constant = _CONSTANT.fullmatch(mine) is not None and not _LISTED.search(mine)
        return is_constant and _worked_out(mine, theirs)
    return _alike(mine, theirs) and _worked_out(mine, theirs)


def _formula(text: str) -> str:
    text = text.strip(" \n\t*_`").removesuffix(".")
    if found := _DELIMITERS.match(text):
        text = found[1]
    text = text.replace("\\left", "").replace("\\right", "").replace("\u2212", "-").replace("\\dfrac", "\\frac")
    return _SHORT_FRAC.sub(r"\\\1{\2}{\3}", text).strip()


def _valued(formula: str) -> str:
    """Without the one name that it gives a value to: `x = 18` is 18, `18 = 18` isn't."""
    sides = _EQUALS.split(formula)
    return sides[1] if len(sides) == 2 and _NAME.fullmatch(sides[0]) else formula


def _alike(mine: str, gold: str) -> bool:
    """Whether it is an answer of the gold's kind: no pair for an interval, no equation for a formula."""
    if gold[:1] in "([" and not (mine[:1] in "([" or _RELATION.search(mine)):
        return False
    if not _EQUALS.search(gold) and _EQUALS.search(mine) and _valued(mine) == mine:
        return False
    if _LETTER.search(mine) or (_INEQUALITY.search(gold) and mine[:1] in "(["):
        return True
    return _LETTER.search(_COMMAND.sub("", _valued(gold))) is None


def _worked_out(formula: str, gold: str) -> bool:
    if _TWO_NUMBERS.search(formula) and not _TWO_NUMBERS.search(gold):
        return False
    if too_much(formula, gold) is not None:
        return False
    return _equal(gold, formula)


def _equal(gold: str, formula: str) -> bool:
    """What math-verify says. Running out of memory or stack is the verifier's failure, and raised."""
    from math_verify import verify

    wanted, found = _parsed(gold), _parse(formula)
    if not wanted or not found:
        return False
    try:
        return bool(
            verify(
                list(wanted),
                list(found),
                float_rounding=ROUNDING,
                allow_set_relation_comp=True,
                timeout_seconds=None,
                raise_on_error=True,
            )
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001  # sympy has no answer for these two: they aren't equal, as math-verify has it
        return False


@lru_cache(maxsize=4096)
def _parsed(formula: str) -> tuple[Any, ...]:
    return tuple(_parse(formula))


def _parse(formula: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    _quiet()
    boxed = [LatexExtractionConfig(boxed_match_priority=0)]
    return list(parse(f"\\boxed{{{formula}}}", boxed, fallback_mode="no_fallback", parsing_timeout=None))


@lru_cache(maxsize=1)
def _quiet() -> None:
    """math-verify warns of timeouts that are off; they are the worker's."""
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
