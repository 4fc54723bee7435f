"""A text as sentences, and the passages that a sentence cites."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_ABBREVIATION = 24  # signs, a bracket before it included
MOST_CITED = 100  # in one range such as [1-3]; a wider one is no citation

# A full stop behind these never ends a sentence; behind those of the second kind not before a number.
_TITLES = {"mr", "mrs", "ms", "dr", "prof", "st", "gen", "sen", "rep", "gov", "capt", "lt", "col", "sgt", "rev", "hon"}
_TITLES |= {"e.g", "i.e", "vs", "cf", "viz", "approx", "ca", "resp", "incl"}
_NUMBERED = {"no", "nos", "fig", "figs", "sec", "eq", "p", "pp", "vol", "ch", "art", "para", "tab", "ed", "ver", "v"}
_NUMBERED |= {"jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"}
_CLOSING = "\"'\u201d\u2019"
_CITING = r"(?: ?\[[\d,; \u2013-]++\]\.?)*+"
# Possessive, and begun at the first of many signs, so that no text takes quadratic time.
_END = re.compile(rf"(?:(?<![.!?])[.!?]++|\u2026)[{_CLOSING})\]*_]*+{_CITING}(?= )|[\u3002\uff01\uff1f]++{_CITING}")
_ACRONYM = re.compile(r"(?:\w{1,2}\.)+[A-Z]")  # U.S, Ph.D
_MARK = re.compile(r"(?:[-*+\u2022\u2013]|\(?\d{1,3}[.)]|\(?[a-z]\)|#{1,6}) ")
_CITATION = re.compile(r" ?\[(\d{1,3}(?:\s*[,;\u2013-]\s*\d{1,3})*)\]")
_WORDLIKE = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence without its citations, and the numbers that it cites, each once and from 1."""

    text: str
    cites: tuple[int, ...]


def sentences(text: str) -> list[Sentence]:
    """The sentences of a text, in order; lines are never joined, and what holds no letter or digit is left out.

    A full stop ends none after an abbreviation, an initial or inside a number, nor before a small letter; a citation
    such as [1], [1, 2] or [1-3] stays with the sentence that it follows.
    """
    found = []
    for line in text.splitlines():
        plain = " ".join(line.split())
        mark = _MARK.match(plain)
        for part in _parts(plain[mark.end() if mark else 0 :]):
            bare = _CITATION.sub("", part).strip()
            if _WORDLIKE.search(bare):
                found.append(Sentence(bare, _cited(part)))
    return found


def _parts(line: str) -> Iterator[str]:
    begun = 0
    for end in _END.finditer(line):
        before = line[max(begun, end.start() - LONGEST_ABBREVIATION) : end.start()]
        after = line[end.end() : end.end() + 2].lstrip()
        if after and _ends(before, end.group(), after):
            yield line[begun : end.end()]
            begun = end.end()
    yield line[begun:]


def _ends(before: str, mark: str, after: str) -> bool:
    """Whether a sentence ends between these."""
    if after[0].islower() and (mark[0] in ".\u2026" or any(sign in _CLOSING for sign in mark)):
        return False
    if mark[0] != ".":
        return True
    word = before.rpartition(" ")[2].lstrip("(\"'\u201c\u2018[")
    initial = len(word) == 1 and word.isalpha() and word.isupper() and word != "I"
    if initial or word.casefold() in _TITLES or _ACRONYM.fullmatch(word):
        return False
    return not (word.casefold() in _NUMBERED and after[0].isdigit())


def _cited(part: str) -> tuple[int, ...]:
    found: list[int] = []
    for citation in _CITATION.finditer(part):
        for item in re.split(r"[,;]", citation.group(1)):
            first, *last = (int(number) for number in re.split(r"[\u2013-]", item))
            until = last[-1] if last else first
            found += range(first, until + 1) if first <= until < first + MOST_CITED else [first]
    return tuple(dict.fromkeys(found))
