"""Where a completion says what its answer is, and whether it says one thing.

A model that is rewarded for answers learns to give several and to let the reader choose. So a completion has a final
answer only where it names one: in its boxes, after `####`, after "the answer is", or, failing these, in a line that
is nothing but an answer. Two that differ are none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.tasks.plain_number import Plain, read

MOST_MARKS = 64  # nobody needs more to say one thing
LONGEST = 600  # characters of one answer
MOST_LINES = 400

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_HASHED = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_STATED = re.compile(r"\banswer\b[*_]{0,3}\s{0,3}(?:is|was|equals|:|=)[*_: \t]*\n{0,2}[*_: \t]*", re.IGNORECASE)
_DENIED = re.compile(r"(?:n't|n\u2019t|\bnot|\bnever|\bif|\bwhether|\bunless|\bdoubt)\b[^.\n]{0,20}$", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?][\"'*_)$]*(?:\s|$)")
_REASON = re.compile(r",?\s+(?:because|since|as)\b", re.IGNORECASE)
_PROSE = re.compile(r"[A-Za-z]{2,}[ ,]+[A-Za-z]{2,}")
_LEAD = re.compile(r"(?:(?:so|thus|hence|therefore),? )?(?:it|that|this) (?:is|equals|makes) ", re.IGNORECASE)
_FORMULA = re.compile(r"\s*(?:\$\$?[^$]+\$\$?|\\\(.*\\\)|\\\[.*\\\])\.?\s*")
_OPENING = r"[\s$*.)\],;:}\\]{0,6}(?:\\?text\{\s*)?"
_HEDGED = re.compile(
    rf"{_OPENING}(?:or|maybe|perhaps|alternatively|otherwise|possibly|wait|actually)\b[^\n]{{0,40}}?[0-9]"
    rf"|{_OPENING}(?:and|but|no|to|hundred|thousand|million|billion|dozen)\b\W{{0,6}}(?:[0-9]|$)"
    r"|[\s$*)\]]{0,4}[,;/&|]\s?\\?[$(]?-?[0-9]",
    re.IGNORECASE,
)
_PART_BEFORE = re.compile(
    r"(?:[0-9]|(?:^|[\s$])[-\u2212\u2013])\Z"
    r"|(?:[+/^]|[=(]\s?[-\u2212\u2013]|\\frac\{|\\sqrt\{|\\cdot|\\times|\bor\b[\s$*\\(]*) ?\Z"
)
_PART_AFTER = re.compile(r" ?(?:[+/^]|\\cdot|\\times|\\div|\\pm|- ?[0-9]|[0-9])")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was written, and the number that it is, if it is one."""

    text: str
    plain: Plain | None

    def equals(self, other: "Answer") -> bool:
        if self.plain is not None and other.plain is not None:
            return self.plain.equals(other.plain)
        return "".join(self.text.split()) == "".join(other.text.split())


@dataclass(frozen=True, slots=True)
class Mark:
    """An answer with where its mark begins and ends."""

    start: int
    end: int
    text: str


def final_answer(completion: str) -> Answer | None:
    """What the completion gives as its answer; None where it gives none, or more than one.

    A box is stronger than loose text around it, but not than a `####`. What is thought before `</think>` is no answer.
    """
    text = _after_thinking(completion)
    if text is None:
        return None
    strong = marks(text)
    if strong is None:
        return None
    found = strong or _stated(text)
    if found:
        return _one(text, found)
    return _bare(text)


def num_marks(completion: str) -> int | None:
    """How often the completion marks an answer, in whatever way; None where that is beyond counting."""
    strong = marks(completion)
    return None if strong is None else len(strong) + len(_STATED.findall(completion))


def marks(text: str) -> list[Mark] | None:
    """The boxes and the `####` in their order; None for more than anyone needs."""
    found = []
    if "\\boxed" in text or "\\fbox" in text:
        boxed = _boxes(text)
        if boxed is None:
            return None
        found = boxed
    if "####" in text:
        for hashed in _HASHED.finditer(text):
            content = hashed[1].strip()
            # A heading of Markdown is no answer, and a box in the line speaks for itself.
            if content and "\\boxed" not in content and not _is_heading(content):
                found.append(Mark(hashed.start(), hashed.end(), content))
            if len(found) > MOST_MARKS:
                return None
        found.sort(key=lambda mark: mark.start)
    return found


def _boxes(text: str) -> list[Mark] | None:
    """Boxes that are closed, without those that hold another; one pass, however they are nested."""
    found: list[Mark] = []
    open_at: list[tuple[int, int] | None] = []  # for each open brace its box's start and content, None for no box
    for token in _BRACES.finditer(text, min(at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0)):
        written = token[0]
        if written == "{":
            open_at.append(None)
        elif written == "}":
            box = open_at.pop() if open_at else None
            if box is not None and not (found and found[-1].start > box[0]):
                found.append(Mark(box[0], token.end(), text[box[1] : min(token.start(), box[1] + LONGEST + 1)]))
        elif len(written) > 2:
            open_at.append((token.start(), token.end()))
        if len(found) > MOST_MARKS:
            return None
    return found


def _is_heading(content: str) -> bool:
    return read(content) is None and _PROSE.search(content[:LONGEST]) is not None


def _stated(text: str) -> list[Mark]:
    """The ends of sentences such as "the answer is 18", those that are denied left out."""
    if "nswer" not in text and "NSWER" not in text:
        return []
    found: list[Mark] = []
    for stated in _STATED.finditer(text):
        if _DENIED.search(text, max(stated.start() - 40, 0), stated.start()):
            continue
        clause = text[stated.end() : stated.end() + LONGEST].partition("\n")[0]
        if again := _STATED.search(clause):
            clause = clause[: again.start()]
        if ended := _SENTENCE.search(clause):
            clause = clause[: ended.start() + (clause[ended.start()] == "?")]
        end = stated.end() + len(clause)
        if reason := _REASON.search(clause):
            clause = clause[: reason.start()]
        found.append(Mark(stated.start(), end, clause.strip()))
        if len(found) > MOST_MARKS:
            break
    return found


def _one(text: str, found: Sequence[Mark]) -> Answer | None:
    """The answer that all marks agree on and that nothing around the last one takes back."""
    last = found[-1]
    answers = [_answer(mark.text) for mark in {mark.text: mark for mark in found}.values()]
    answer = _answer(last.text)
    if len(found) > MOST_MARKS or not answer.text or not all(answer.equals(other) for other in answers):
        return None
    if text.startswith("\\", last.start) and _is_part(text, last):
        return None
    tail = text[last.end : last.end + LONGEST]
    if _HEDGED.match(tail) or any(not answer.equals(line) for line in _bare_lines(text[last.end :])):
        return None
    return answer


def _is_part(text: str, box: Mark) -> bool:
    """Whether the box is a piece of a larger expression, as in `-\\boxed{18}`, or one of two."""
    before = text[max(box.start - 16, 0) : box.start]
    return bool(_PART_BEFORE.search(before)) or bool(_PART_AFTER.match(text, box.end))


def _answer(text: str) -> Answer:
    text = text.strip()
    return Answer(text, read(text))


def _bare_lines(text: str) -> list[Answer]:
    """The lines that are nothing but a number or a formula."""
    found = []
    for line in text[-200_000:].splitlines()[-MOST_LINES:]:
        if line and len(line) <= LONGEST and not line.isspace():
            answer = _answer(line)
            if answer.plain is not None or _FORMULA.fullmatch(line):
                found.append(answer)
    return found


def _bare(text: str) -> Answer | None:
    """The whole completion where it is one line and no sentence, else its last line where that is but an answer."""
    lines = text.strip()
    if lead := _LEAD.match(lines):
        lines = lines[lead.end() :]
    if "\n" not in lines:
        if len(lines) > LONGEST or not lines:
            return None
        answer = _answer(lines)
        return None if answer.plain is None and _PROSE.search(lines) else answer
    last = _bare_lines(lines[lines.rindex("\n") :])
    if last and all(last[0].equals(line) for line in _bare_lines(lines)):
        return last[0]
    return None


def _after_thinking(completion: str) -> str | None:
    if "</think>" in completion:
        return completion.rpartition("</think>")[2]
    return None if "<think>" in completion else completion
