"""Which formulas are small enough to be worked out: what is refused here, an answer to a question never is."""

import re
from collections.abc import Iterator

LONGEST = 500
DEEPEST = 12
MOST_DIGITS = 40
LARGEST_EXPONENT = 64
LARGEST_PRODUCT = 20_000  # of all numbers that stand in exponents: powers of powers multiply
LARGEST_FACTORIAL = 30
LARGEST_BINOMIAL = 200
MOST_POWERS = 20
MOST_FUNCTIONS = 16

_LONG_NUMBER = re.compile(rf"[0-9]{{{MOST_DIGITS + 1},}}")
_LOOPS = re.compile(
    r"\\(?:sum|prod|i{0,3}nt|oint|lim|limsup|liminf|bigcup|bigcap|coprod|underbrace|overbrace|uparrow)(?![a-z])"
)
_MATRIX = re.compile(r"\\begin|\\det(?![a-z])|\\operatorname")
_FUNCTION = re.compile(r"\\(?:exp|sinh|cosh|tanh|sin|cos|tan|log|ln|sqrt|arc[a-z]+|frac|gcd|lcm|binom)(?![a-z])")
_GROWING = re.compile(r"\\(?:exp|sinh|cosh)(?![a-z])|(?:\be|\\mathrm\{e\}) ?\^")
_BINOMIAL = re.compile(r"\\[dt]?binom|\\choose|\\operatorname|[0-9]\s*[CP]_|_\{?[0-9]+\}?\s*[CP]\b|\)_\{")
_POWER = re.compile(r"\^|\*\*")
_NUMBERS = re.compile(r"[0-9]+")
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")


def largest_exponent(formula: str) -> int:
    """The largest number that stands in an exponent."""
    return max((_size(exponent) for exponent in _exponents(formula)), default=0)


def too_much(formula: str, gold: str) -> str | None:
    """Why this formula isn't worked out, None where it is; what the gold answer itself needs is allowed.

    Everything here is linear in the text. What it lets through may still take long: that is for the worker's limits.
    """
    if len(formula) > max(LONGEST, 2 * len(gold)):
        return "too long"
    if _LONG_NUMBER.search(formula):
        return "a number too long"
    if _depth(formula) > DEEPEST:
        return "nested too deep"
    for pattern, what in ((_LOOPS, "a sum, product, integral or limit"), (_MATRIX, "a matrix"), (_BINOMIAL, "choice")):
        if pattern.search(formula) and not pattern.search(gold):
            return what
    if len(_FUNCTION.findall(formula)) > MOST_FUNCTIONS or len(_GROWING.findall(formula)) > 4:
        return "too many functions"
    return _powers(formula, gold) or _factorials(formula)


def _powers(formula: str, gold: str) -> str | None:
    product, limit = 1, max(LARGEST_EXPONENT, largest_exponent(gold))
    exponents = list(_exponents(formula))
    if len(exponents) > MOST_POWERS:
        return "too many powers"
    for exponent in exponents:
        if (_POWER.search(exponent) or "!" in exponent) and len(_NUMBERS.findall(exponent)) > 1:
            return "a tower of powers"
        size = _size(exponent)
        if size > limit:
            return "too large a power"
        product *= max(size, 1)
    return "powers of powers" if product > max(LARGEST_PRODUCT, limit) else None


def _factorials(formula: str) -> str | None:
    for part in formula.split("!")[:-1]:
        found = re.search(r"([0-9]{1,6})\s*\)?\s*\}?\s*$", part)
        if found is None and re.search(r"[a-z]\s*$", part):
            continue
        if found is None or int(found[1]) > LARGEST_FACTORIAL or re.search(r"[-+*/^)]\s*[0-9]*\s*\)\s*$", part):
            return "a factorial"
    return None


def _exponents(formula: str) -> Iterator[str]:
    """What stands behind each `^`: a group in its brackets, or the next piece with the powers that it carries."""
    for power in _POWER.finditer(formula):
        rest = formula[power.end() : power.end() + 200].lstrip()
        if rest[:1] in _OPENING:
            yield _group(rest)
        else:
            yield (re.match(r"[-+]?(?:\\?[A-Za-z]+|[0-9.]+)?(?:\s*(?:\^|\*\*|!)\s*\S{0,12})*", rest) or [""])[0]


def _group(text: str) -> str:
    depth = 0
    for position, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            follows = text[position + 1 :].lstrip()
            return text[: position + 1] + (follows[:12] if follows[:1] == "^" else "")
    return text


def _size(exponent: str) -> int:
    """The product of the numbers in it, which no way of combining two of them but a power exceeds by much."""
    product = 1
    for number in _NUMBERS.findall(exponent):
        product *= max(int(number[:9]), 1)
    return product


def _depth(formula: str) -> int:
    depth = deepest = 0
    for character in formula:
        if character in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif character in _CLOSING:
            depth -= 1
    return deepest
