"""Labelled answers to the math verifier, in `math_cases/`: right in odd forms, tempting but wrong, formulas; bombs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.dataset.row import Row

FOLDER = Path(__file__).parent / "math_cases"
SETS = ("odd", "tempting", "symbolic")
MB = 1_000_000


@dataclass(frozen=True)
class Case:
    """An answer to a question whose gold answer this is, and whether it is right."""

    gold: str
    completion: str
    right: bool

    @property
    def row(self) -> Row:
        return row_of(self.gold)


def row_of(gold: str) -> Row:
    return Row("1", "toy", [{"role": "user", "content": "How many?"}], [], gold, "", "toy.jsonl:1", "a")


def cases(name: str) -> list[Case]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Case(**json.loads(line)) for line in lines]


def _nested(opening: str, closing: str, depth: int, core: str = "18") -> str:
    return opening * depth + core + closing * depth


def _boxed(formula: str) -> str:
    return r"\boxed{" + formula + "}"


# Each is an answer that hangs, floods or breaks a careless verifier; none says 18. Too long to be kept in a file.
_BUILT: dict[str, Callable[[], str]] = {
    "3000 brackets": lambda: _boxed(_nested("(", ")", 3000, "17")),
    "3000 braces": lambda: _boxed(_nested("{", "}", 3000, "17")),
    "3000 square brackets": lambda: _boxed(_nested("[", "]", 3000, "17")),
    "3000 fractions": lambda: _boxed(_nested(r"\frac{1}{", "}", 3000, "17")),
    "3000 roots": lambda: _boxed(_nested(r"\sqrt{", "}", 3000, "17")),
    "3000 boxes": lambda: _nested(r"\boxed{", "}", 3000, "17"),
    "boxes that stay open": lambda: r"\boxed{" * 100_000,
    "brackets that stay open": lambda: r"\boxed{" + "(" * 3000,
    "1 MB of digits": lambda: "9" * MB,
    "1 MB of boxed digits": lambda: _boxed("9" * MB),
    "1 MB of numbers": lambda: "17 " * (MB // 3),
    "1 MB of lines": lambda: "17\n19\n" * (MB // 6),
    "1 MB of boxes": lambda: r"\boxed{17} \boxed{19} " * (MB // 22),
    "1 MB of marks": lambda: "#### 17\n#### 19\n" * (MB // 16),
    "1 MB of answers": lambda: "the answer is 17 " * (MB // 17),
    "1 MB of hashes": lambda: "#" * MB,
    "1 MB of letters": lambda: _boxed("x" * MB),
    "1 MB of blanks": lambda: "the answer is" + " " * MB + "17",
    "1 MB of dollars": lambda: "$" * MB,
    "1 MB of backslashes": lambda: "\\" * MB,
    "1 MB of commas": lambda: "1," * (MB // 2),
    "1 MB of braces": lambda: r"\boxed{17}" + "{}" * (MB // 2) + "{" * 100,
    "regex: words": lambda: "#### 17 " + "a-" * 70 + "!",
    "regex: dollars": lambda: r"\boxed{" + "$1" * 200 + "}",
    "regex: and": lambda: " and ".join(["$x$"] * 5000),
    "regex: answers without end": lambda: "answer: " + "x= " * 20_000,
    "regex: brackets and dashes": lambda: r"\boxed{17 " + "(-" * 60 + "}",
    "a thousand terms": lambda: r"\boxed{" + "+".join(f"x_{{{n}}}" for n in range(1000)) + "}",
    "a product of sums": lambda: r"\boxed{" + "(a+b+c+d)" * 50 + "}",
    "lone surrogates": lambda: r"\boxed{" + "\ud800" * 1000 + "}",
    "zero bytes": lambda: r"\boxed{17" + "\0" * 1000 + "}",
}
_TOWERS = (
    r"9^{9^{9^{9}}}",
    r"9^9^9^9",
    r"(((9^9)^9)^9)^9",
    r"10^{10^{10}}",
    r"2^{2^{2^{2^{2^{2}}}}}",
    r"9999999!",
    r"((9!)!)!",
    r"9!!!!!!",
    r"\binom{10^{9}}{5 \cdot 10^8}",
    r"\binom{999999}{499999}",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n}",
    r"\prod_{n=1}^{10^9} n",
    r"\int_0^{1} x^{x^{x^{x}}} dx",
    r"\exp(\exp(\exp(\exp(9))))",
    r"e^{e^{e^{e^{9}}}}",
    r"(x+y+z+w)^{5000}",
    r"(1+x)^{999}(1+y)^{999}",
    r"\sqrt[3]{9^{9^{9}}}",
    r"\sin(9^{9^{9}})",
    r"\log_{2}(9^{9^{9^{9}}})",
    r"1.0^{-9^{9^9}}",
    r"9^{99999999}",
    r"10^{-999999999}",
    r"9**9**9**9",
    r"\lim_{n \to \infty} n^{n^{n}}",
    r"\gcd(9^{9^{9}}, 6^{6^{6^{6}}})",
)


def bombs() -> dict[str, str]:
    """Completions by what they are."""
    found = {tower: rf"\boxed{{{tower}}}" for tower in _TOWERS}
    return found | {name: build() for name, build in _BUILT.items()}
