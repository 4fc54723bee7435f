"""Whether a passage supports a claim by the words alone: a fallback for where no judge is asked.

It knows no meaning: a paraphrase in other words is missed, and words of the passage put together otherwise are let
through. What it does see is another number and, in English, a negation.
"""

import re
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from pipelines.evaluation.sentences import sentences

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_WRITTEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMERALS = {word: str(value) for value, word in enumerate(_WRITTEN)}
_PRONOUNS = {"one"}  # "one of them" says no number
_NEGATIONS = {"no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "cannot", "without"}
_SAYING_NOTHING = (
    "a an the this that these those it its he she they them his her their we us our you your i me my and or but if "
    "then than so as of at by for from in into on onto to with about over under between during before after is are "
    "was were be been being am do does did done has have had having will would shall should can could may might "
    "must there here which who whom whose what when where why how also very just only some any all each both more "
    "most other such own same too s t"
)
_STOP_WORDS = frozenset(_SAYING_NOTHING.split())


def overlap(claim: str, passage: str, threshold: float) -> bool | None:
    """Whether the passage holds at least `threshold` of the claim's content words, all its numbers, and no opposite.

    None for a claim of neither content words nor numbers. Words are compared without case and plural; a number may
    be written out up to twelve. A claim is negated where it holds a word such as not; the passage's sentence that
    shares most with it must be negated as it is.
    """
    wanted, numbers = _content(claim), _numbers(claim, _PRONOUNS)
    if not wanted and not numbers:
        return None
    held = _read(passage)
    if not numbers <= held.numbers:
        return False
    if wanted and len(wanted & held.words) < threshold * len(wanted) - 1e-9:
        return False
    return _is_negated(claim) in held.negations_beside(wanted | numbers)


@dataclass(frozen=True, slots=True)
class _Passage:
    """A passage's content words and numbers, and both of each sentence with whether it is negated."""

    words: frozenset[str]
    numbers: frozenset[str]
    sentences: tuple[tuple[frozenset[str], bool], ...]

    def negations_beside(self, wanted: set[str]) -> set[bool]:
        """Whether the sentence that shares most with the claim is negated; of equals, each.

        What few sentences hold counts more, so that a sentence about the claim's point comes before its topic's.
        """
        often = Counter(word for held, _ in self.sentences for word in held)
        shared = [
            (round(sum(1 / often[word] for word in sorted(wanted & held)), 9), negated)
            for held, negated in self.sentences
        ]
        most = max((weight for weight, _ in shared), default=0.0)
        return {negated for weight, negated in shared if weight == most}


@lru_cache(maxsize=256)
def _read(passage: str) -> _Passage:
    parts = tuple(
        (frozenset(_content(one.text) | _numbers(one.text, set())), _is_negated(one.text)) for one in sentences(passage)
    )
    return _Passage(frozenset(_content(passage)), frozenset(_numbers(passage, set())), parts)


def _words(text: str) -> list[str]:
    return [word.casefold().replace("\u2019", "'") for word in _WORD.findall(text)]


def _content(text: str) -> set[str]:
    """The words that say something, without their plural's s; numbers and negations are compared by themselves."""
    found = set()
    for word in _words(text):
        bare = word.removesuffix("'s")
        if bare not in _STOP_WORDS and bare not in _NUMERALS and not _negates(bare):
            found.add(bare[:-1] if len(bare) > 3 and bare.endswith("s") and not bare.endswith("ss") else bare)
    return found


def _numbers(text: str, but: set[str]) -> set[str]:
    """Numbers in one spelling, written-out ones too unless they are among `but`."""
    found = {_spelt(number) for number in _NUMBER.findall(text)}
    return found | {_NUMERALS[word] for word in _words(text) if word in _NUMERALS and word not in but}


def _spelt(number: str) -> str:
    plain = number.replace(",", "") if _THOUSANDS.fullmatch(number) else number
    if plain.count(".") > 1 or "," in plain:  # a version, a date, a list
        return plain
    value = format(Decimal(plain), "f")
    return value.rstrip("0").rstrip(".") if "." in value else value


def _negates(word: str) -> bool:
    return word in _NEGATIONS or word.endswith("n't")


def _is_negated(text: str) -> bool:
    """Whether a word negates; "not only" doesn't."""
    words = _words(text)
    return any(_negates(word) and words[i + 1 : i + 2] != ["only"] for i, word in enumerate(words))
