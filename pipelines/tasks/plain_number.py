"""One number in the forms that people write it in, read exactly."""

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 160  # characters of what can be one number with its unit
MOST_DIGITS = 60
LARGEST_EXPONENT = 30

_SIMPLE = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,40})(?:\.[0-9]{1,40})?")
_SAME = str.maketrans(
    # minus, dashes, fullwidth hyphens; spaces that don't break; fraction slash, times, apostrophe; fullwidth % and $
    "\u2212\u2013\u2014\ufe63\uff0d\u00a0\u2009\u202f\u2044\u00d7\u2019\uff05\uff04\t\n",
    "-----   /*'%$  ",
) | str.maketrans({"½": " 1/2", "¼": " 1/4", "¾": " 3/4"} | {chr(0xFF10 + digit): str(digit) for digit in range(10)})
_SPACING = re.compile(r"\\[,;: ]|\\quad|\\left|\\right|\\displaystyle|~")
_UNWRAPPED = re.compile(
    r"\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\]|\{([^{}]*)\}|\(([^(),]*)\)"
    r"|\\(?:text|mathrm|mathbf|mathit|mathsf|textbf|textit|textrm|boldsymbol|mbox|bm)\s*\{([^{}]*)\}"
)
_LABEL = re.compile(r"(?:\\text\{([A-Za-z ]{1,40})\}|([A-Za-z][A-Za-z _]{0,40}))\s*(?:=|:)\s*(?=\S)")
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_START = r"(?P<sign>[+-]?) ?(?:US\$|\\\$|[$€£¥₹]|USD |EUR |GBP |Rs\.? )? ?(?P<inner>[+-]?) ?"
_FORMS = [
    re.compile(_START + form + r"(?P<tail>.*)")
    for form in (
        rf"(?P<whole>[0-9]+)?[ ]?\\[dtc]?frac ?\{{ ?(?P<over>[+-]?{_DECIMAL}) ?\}} ?\{{ ?(?P<under>{_DECIMAL}) ?\}}",
        r"(?P<whole>[0-9]+)?[ ]?\\[dtc]?frac ?(?P<over>[0-9]) ?(?P<under>[0-9])(?![0-9])",
        rf"(?:(?P<whole>[0-9]+) )?(?P<over>{_DECIMAL}) ?/ ?(?P<under>{_DECIMAL})",
        rf"(?P<number>{_DECIMAL}) ?(?:\\times|\\cdot|\*) ?10 ?\^ ?\{{?(?P<exponent>[+-]?[0-9]{{1,3}})(?![0-9])\}}?",
        rf"(?P<number>{_DECIMAL})[eE](?P<exponent>[+-]?[0-9]{{1,3}})(?![0-9A-Za-z])",
        rf"(?P<number>{_DECIMAL})",
    )
]
_NAME = r"(?:\(?[A-Za-z][A-Za-z'.-]*\)?|\\(?:text|mathrm|mbox) ?\{[A-Za-z .'/-]*\})"
_UNIT = re.compile(
    r"(?P<percent>(?:\\?%| ?per ?cent\b))?"
    r"(?: ?(?:\\?[$€£¥₹]|°|\^ ?\{? ?\\circ ?\}?|\\degree))?"
    rf"(?:(?P<words>[ -]{{0,2}}{_NAME}(?:[ /]{{1,2}}{_NAME}){{0,5}})(?:\^ ?\{{? ?[23] ?\}}?|²|³)?)?(?: ?\\?\$)?"
)
_WORD = re.compile(r"[A-Za-z][A-Za-z']*")
# Words that make another number, or no single one, of what stands before them.
_CHANGING_WORDS = """
or and to but not no plus minus times over through until maybe perhaps possibly probably either neither nor versus vs
is isn't are aren't was wasn't wrong incorrect false if then than hundred thousand million billion trillion dozen score
half quarter third pi tau sqrt root log ln sin cos tan exp mod factorial squared cubed frac text times cdot div
"""
_CHANGING = frozenset(_CHANGING_WORDS.split())
_UNIT_LETTERS = frozenset("mgshlLVAWNJCF")


@dataclass(frozen=True, slots=True)
class Plain:
    """A rational number; `percent` says that it was written with a percent sign, before it's divided by 100."""

    value: Fraction
    percent: bool = False

    def equals(self, other: "Plain") -> bool:
        """Whether both name one number; 25% is 25 percent and 0.25, as answers to questions about percentages are."""
        if self.value == other.value:
            return True
        if self.percent == other.percent:
            return False
        mine, theirs = (self.value / 100 if self.percent else self.value), other.value
        return mine == (theirs / 100 if other.percent else theirs)

    def __str__(self) -> str:
        return f"{self.value}{'%' if self.percent else ''}"


def read(text: str, labelled: bool = True) -> Plain | None:
    """The number that the whole text is: a decimal or a fraction with its currency, separators, percent sign, unit.

    `labelled` allows a name before it, as in `x = 18` or `Total: 18`. None for anything else, such as two numbers or
    an expression.
    """
    if _SIMPLE.fullmatch(text):
        return Plain(Fraction(text.replace(",", "")))
    if len(text) > LONGEST:
        return None
    bare = _unwrapped(text)
    if labelled and (label := _LABEL.match(bare)) and _harmless(label[1] or label[2]):
        bare = _unwrapped(bare[label.end() :])
    return _number(bare)


def _unwrapped(text: str) -> str:
    """Without what only sets the type: spacing, dollars of formulas, bold, brackets around everything."""
    text = text.translate(_SAME).replace("\\!", "").replace("{,}", ",").replace("\\%", "%")
    text = _SPACING.sub(" ", text)
    for _ in range(8):
        before = text
        text = text.strip(" *_`\"'").removesuffix(".").rstrip()
        if found := _UNWRAPPED.fullmatch(text):
            text = next(group for group in found.groups() if group is not None)
        if text == before:
            break
    return " ".join(text.split())


def _number(text: str) -> Plain | None:
    if sum(character.isdigit() for character in text) > MOST_DIGITS:
        return None
    for form in _FORMS:
        found = form.fullmatch(text)
        if found is None:
            continue
        unit = _UNIT.fullmatch(found["tail"])
        if unit is None or not _is_unit(unit["words"] or "", found["tail"]):
            continue
        value = _value(found.groupdict())
        negative = (found["sign"] == "-") != (found["inner"] == "-")
        return None if value is None else Plain(-value if negative else value, unit["percent"] is not None)
    return None


def _value(parts: dict[str, str | None]) -> Fraction | None:
    if over := parts.get("over"):
        under = _decimal(parts["under"] or "")
        if under == 0:
            return None
        return (_decimal(parts["whole"]) if parts["whole"] else 0) + _decimal(over) / under
    power = int(parts.get("exponent") or 0)
    if abs(power) > LARGEST_EXPONENT:
        return None
    return _decimal(parts["number"] or "") * Fraction(10) ** power


def _decimal(text: str) -> Fraction:
    digits = text.replace(",", "").replace(" ", "")
    return Fraction(digits[:-1] if digits.endswith(".") else digits)


def _is_unit(words: str, tail: str) -> bool:
    """Whether the words after a number only say of what it is: `18x` and `18 thousand` are other numbers."""
    found = _WORD.findall(words.replace("\\text", " ").replace("\\mathrm", " ").replace("\\mbox", " "))
    if len(found) == 1 and len(found[0]) == 1:
        return found[0] in _UNIT_LETTERS
    return all(len(word) > 1 or word in _UNIT_LETTERS or word == "a" for word in found) and _harmless(" ".join(found))


def _harmless(words: str) -> bool:
    return _CHANGING.isdisjoint(words.lower().split())
