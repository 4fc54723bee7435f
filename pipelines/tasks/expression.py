"""Arithmetic that a model wrote, worked out exactly by reading it: nothing of it is ever run."""

import re
from collections.abc import Mapping
from fractions import Fraction

Powers = tuple[tuple[str, int], ...]
_TERM = re.compile(r"([-+]?) ?([\w*/]+)")
_FACTOR = re.compile(r"([*/]?)(?:(\d+)|([A-Za-z])(?:\*\*(\d+))?)")


class Expression:
    """Whole numbers with + - * / and brackets."""

    def __init__(self, text: str) -> None:
        self._signs = re.findall(r"\d+|\S", text)
        self._at = 0

    def value(self) -> Fraction:
        """Raises ValueError where it is no such expression, ZeroDivisionError where it divides by 0."""
        found = self._sum()
        if self._at < len(self._signs):
            raise ValueError(f"{self._signs[self._at]!r} is left over")
        return found

    def _next(self) -> str:
        return self._signs[self._at] if self._at < len(self._signs) else ""

    def _take(self) -> str:
        sign = self._next()
        self._at += 1
        return sign

    def _sum(self) -> Fraction:
        total = self._product()
        while self._next() in ("+", "-"):
            total += self._product() if self._take() == "+" else -self._product()
        return total

    def _product(self) -> Fraction:
        product = self._operand()
        while self._next() in ("*", "/"):
            product = product * self._operand() if self._take() == "*" else product / self._operand()
        return product

    def _operand(self) -> Fraction:
        sign = self._take()
        if sign == "-":
            return -self._operand()
        if sign == "(":
            found = self._sum()
            if self._take() != ")":
                raise ValueError("a bracket isn't closed")
            return found
        if not (sign.isascii() and sign.isdigit()):
            raise ValueError(f"expected a number, got {sign!r}")
        return Fraction(int(sign))


def polynomial(text: str) -> Mapping[Powers, Fraction]:
    """Terms without brackets, such as `3*x**2/4 - y`: the factor of each product of powers, those of 0 left out.

    Raises ValueError where it is none, ZeroDivisionError where it divides by 0.
    """
    found: dict[Powers, Fraction] = {}
    at, text = 0, " ".join(text.split())
    while at < len(text):
        term = _TERM.match(text, at)
        if term is None or (at > 0 and not term[1]):
            raise ValueError(f"expected + or - and a term at {text[at : at + 20]!r}")
        powers, factor = _monomial(term[2])
        found[powers] = found.get(powers, Fraction(0)) + (-factor if term[1] == "-" else factor)
        at = term.end() + (text[term.end() : term.end() + 1] == " ")
    return {powers: factor for powers, factor in found.items() if factor}


def _monomial(text: str) -> tuple[Powers, Fraction]:
    factor, powers, at = Fraction(1), dict[str, int](), 0
    while at < len(text):
        part = _FACTOR.match(text, at)
        if part is None or (at > 0) != bool(part[1]) or (part[1] == "/" and part[3]):
            raise ValueError(f"expected a factor at {text[at : at + 20]!r}")
        if part[3]:
            powers[part[3]] = powers.get(part[3], 0) + int(part[4] or 1)
        else:
            factor = factor * int(part[2]) if part[1] != "/" else factor / int(part[2])
        at = part.end()
    return tuple(sorted((name, power) for name, power in powers.items() if power)), factor
