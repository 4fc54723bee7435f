"""Personal data replaced by its kind, as presidio's pattern recognisers find it.

What has a pattern is found: addresses of mail, the web and machines, phone, card and account numbers. Names,
postal addresses, dates of birth and whatever else only its meaning gives away are not.
"""

import importlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError

RECOGNIZERS = {
    "EMAIL_ADDRESS": "EmailRecognizer",
    "PHONE_NUMBER": "PhoneRecognizer",
    "CREDIT_CARD": "CreditCardRecognizer",
    "IBAN_CODE": "IbanRecognizer",
    "IP_ADDRESS": "IpRecognizer",
    "US_SSN": "UsSsnRecognizer",
    "URL": "UrlRecognizer",
    "CRYPTO": "CryptoRecognizer",
    "MAC_ADDRESS": "MacAddressRecognizer",
}
# A text without the pattern can't hold the kind: most texts are spared the slow search that way. The shortest phone
# number with its area code has seven digits, at most four signs apart.
NEEDED = {
    "EMAIL_ADDRESS": "@",
    "PHONE_NUMBER": r"\d(?:(?:x|[^\w=<>*]){0,4}\d){6}",
    "IP_ADDRESS": "[.:]",
    "URL": r"\.",
    "MAC_ADDRESS": "[.:-]",
}
DIGIT = r"\d"
# presidio's own pattern takes minutes for a long text without spaces; a mailbox has at most 64 characters (RFC 5321).
EMAIL = r"\b[\w!#$%&'*+\-/=?^`{|}~.]{1,64}@\w[\w-]{0,62}(?:\.\w[\w-]{0,62})+\b"
# Below it presidio asks for words around the match: any nine digits may be a social security number.
CERTAIN = 0.4


@dataclass(frozen=True, slots=True)
class Found:
    """Where in a text a kind of personal data stands; the score is presidio's, 1 for a checksum that holds."""

    kind: str
    start: int
    end: int
    score: float

    def joins_sentences(self, text: str) -> bool:
        """Whether presidio took the dots of "arrived.So is" or "a card...how" for those of a web address."""
        matched = text[self.start : self.end]
        if self.kind != "URL" or "/" in matched:
            return False
        return text[self.end : self.end + 1].isalnum() or ".." in matched or matched.rpartition(".")[2].istitle()

    def overlaps(self, other: "Found") -> bool:
        return self.start < other.end and other.start < self.end


class Redactor:
    """Replaces personal data of the given kinds by `<KIND>`.

    Card numbers count only where the Luhn digit holds, IBANs and Bitcoin addresses only with their checksum,
    phone numbers only where they are valid in one of `regions` (ISO 3166 codes) or international.
    """

    def __init__(self, kinds: Sequence[str], regions: Sequence[str]) -> None:
        """Imports presidio, some seconds, where there is a kind; raises UserError where it isn't installed."""
        self._recognizers = [
            (re.compile(NEEDED.get(kind, DIGIT)), _recognizer(kind, list(regions))) for kind in dict.fromkeys(kinds)
        ]

    def redact(self, text: str) -> tuple[str, Counter[str]]:
        """The text without personal data, and how often each kind was replaced.

        Where two kinds overlap, the higher score wins, then the longer match. What a replaced match leaves is looked
        at again, so that a second call finds nothing.
        """
        counts: Counter[str] = Counter()
        while found := _chosen(self._find(text)):
            for item in reversed(found):
                text = f"{text[: item.start]}<{item.kind}>{text[item.end :]}"
            counts.update(item.kind for item in found)
        return text, counts

    def _find(self, text: str) -> list[Found]:
        found = [
            Found(result.entity_type, result.start, result.end, result.score)
            for needed, recognizer in self._recognizers
            if needed.search(text)
            for result in recognizer.analyze(text, recognizer.supported_entities)
            if result.score >= CERTAIN
        ]
        return [item for item in found if not item.joins_sentences(text)]


def _chosen(found: Sequence[Found]) -> list[Found]:
    """Matches that don't overlap, in the order of the text."""
    chosen: list[Found] = []
    for item in sorted(found, key=lambda item: (-item.score, item.start - item.end, item.start, item.kind)):
        if not any(item.overlaps(other) for other in chosen):
            chosen.append(item)
    return sorted(chosen, key=lambda item: item.start)


def _recognizer(kind: str, regions: list[str]) -> Any:
    try:
        presidio = importlib.import_module("presidio_analyzer.predefined_recognizers")
    except ModuleNotFoundError as error:
        raise UserError("prepare.redact: needs the package presidio-analyzer; pip install 'tunesmith[pii]'") from error
    if kind == "EMAIL_ADDRESS":
        return _email_recognizer(presidio.EmailRecognizer)
    options = {"supported_regions": regions} if kind == "PHONE_NUMBER" else {}
    return getattr(presidio, RECOGNIZERS[kind])(**options)


def _email_recognizer(base: Any) -> Any:
    """presidio's, with the public suffixes that tldextract ships; by itself it would download their list."""
    from presidio_analyzer import Pattern
    from tldextract import TLDExtract

    suffixes = TLDExtract(cache_dir=None, suffix_list_urls=())

    class EmailRecognizer(base):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(suffixes(pattern_text).fqdn)

    return EmailRecognizer(patterns=[Pattern("email", EMAIL, 0.5)])
