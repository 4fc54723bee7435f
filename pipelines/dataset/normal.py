"""What counts as the same text: the form in which duplicates are looked for."""

import hashlib
import re
import string
import unicodedata

# These say something in code and arithmetic, where `7 * 5` and `7 / 5` are different questions.
_MEANT = "%&@#*/\\"
_DROPPED = dict.fromkeys(map(ord, "'\u2018\u2019\u02bc"))
_TO_SPACE = {ord(sign): " " for sign in string.punctuation if unicodedata.category(sign)[0] == "P"}
_ASCII = {code: to for code, to in _TO_SPACE.items() if chr(code) not in _MEANT} | {ord("'"): None}
_ACCENT = re.compile("[\u0300-\u036f]+")
_NEGATIVE = re.compile(r"(?<![\w)\]])-(?=[\d.])")


def _spaced(text: str) -> str:
    """Punctuation of any script as a space; apostrophes are dropped, so that `don't` is `dont`."""
    text = text.translate(_DROPPED)
    return "".join(" " if unicodedata.category(sign)[0] == "P" and sign not in _MEANT else sign for sign in text)


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFKC", _ACCENT.sub("", decomposed))


def normalised(text: str) -> str:
    """The text without case, accents, punctuation and superfluous white space.

    NFKC and case folding; of letters with accents the letters; punctuation becomes a space, but for apostrophes
    (dropped), a minus before a number and the signs of arithmetic and code; white space becomes one space. A text
    of which nothing is left (`?!`) keeps its punctuation.
    """
    signed = _NEGATIVE.sub("\u2212", text) if "-" in text else text
    bare = signed.lower().translate(_ASCII) if text.isascii() else _spaced(_folded(signed))
    return " ".join(bare.split()) or " ".join(text.casefold().split())


def text_hash(text: str) -> int:
    """64 bits that name a text on every machine, in 0..2**64-1."""
    content = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
