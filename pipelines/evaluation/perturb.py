"""A row's question in other clothes: what a user might as well have written, which shouldn't change the answer.

Invariance tests as in CheckList (Ribeiro et al. 2020, Beyond Accuracy: Behavioral Testing of NLP Models with
CheckList, section 2.1). Every change is decided by seed, kind and row id alone.
"""

import hashlib
import random
import re
from collections.abc import Callable, Sequence

from pipelines.dataset.context import parted
from pipelines.dataset.row import Message, Row, text_of

DEFINITIONS: dict[str, str] = {
    "consistency": "Share of the perturbed rows that are read as the same answer as the row itself, right or wrong, "
    "over all kinds and by kind; more is better. An invariance test of CheckList (Ribeiro et al. 2020): typing errors "
    "(one in about 20 letters), upper case, lower case, politeness around the question, other punctuation and spacing."
}

LETTERS_A_TYPO = 20
WORD = 3  # letters that a word has at least before a typing error goes into it
PREFIXES = (
    "Hi! ",
    "Good morning. ",
    "Excuse me. ",
    "Hello, I hope you are well. ",
    "Could you please help me with this? ",
    "Sorry to bother you. ",
)
SUFFIXES = (
    " Thank you!",
    " Thanks a lot in advance.",
    " I'd really appreciate your help.",
    " Kind regards",
    " Cheers!",
)
_KEYS = {
    key: (line, place)
    for line, keys in enumerate(("qwertyuiop", "asdfghjkl", "zxcvbnm"))
    for place, key in enumerate(keys)
}
# Each line of keys stands a little to the right of the one above.
_STEPS = {(0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0)}
BESIDE = {
    key: "".join(other for other, at in _KEYS.items() if (at[0] - line, at[1] - place) in _STEPS)
    for key, (line, place) in _KEYS.items()
}
_COMMA = re.compile(r",(?!\d)")
_END = re.compile(r"[.?!…]+\s*$")
_STOP = re.compile(r"(?<=\w)([,;:?!])(?!\d)")


def perturb(row: Row, kind: str, seed: int) -> list[Message] | None:
    """The row's prompt with its last user's text changed; None where the kind changes nothing.

    `kind` is one of `KINDS`. Other messages stay, and so do the passages of the row's context.
    """
    last = max((i for i, message in enumerate(row.prompt) if message["role"] == "user"), default=None)
    if last is None:
        return None
    block, asked = parted(text_of(row.prompt[last]), row.context)
    if not any(character.isalpha() for character in asked):
        return None
    hidden, spans, mark = _hidden(asked, row.context or [])
    changed = KINDS[kind](hidden, _draws(seed, kind, row.id))
    if changed == hidden:
        return None
    pieces = iter(spans)
    shown = block + "".join(next(pieces) if character == mark else character for character in changed)
    return [*row.prompt[:last], {**row.prompt[last], "content": shown}, *row.prompt[last + 1 :]]


def _hidden(text: str, context: Sequence[str]) -> tuple[str, list[str], str]:
    """The text with a mark in each passage's place, the passages in their order, and the mark."""
    mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
    longest = sorted(context, key=len, reverse=True)
    pattern = "|".join(r"\s+".join(map(re.escape, passage.split())) for passage in longest if passage.split())
    if not pattern:
        return text, [], mark
    return re.sub(pattern, mark, text), [found.group() for found in re.finditer(pattern, text)], mark


def _draws(seed: int, kind: str, row_id: str) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed} {kind} {row_id}".encode()).digest())


def _pick(draws: random.Random, count: int) -> int:
    """A number below `count`. What `random` gives for a seed is promised to stay; `choice` and `sample` aren't."""
    return int(draws.random() * count)


# --- kinds --------------------------------------------------------------------------------------


def _typos(text: str, draws: random.Random) -> str:
    """Letters swapped, dropped, doubled or hit beside their key, no two in a row; digits stay."""
    letters = [i for i, character in enumerate(text) if character.isalpha()]
    inside = [i for word in re.finditer(rf"[^\W\d_]{{{WORD},}}", text) for i in range(*word.span())]
    places, chosen = inside or letters, set[int]()
    for _ in range(max(1, round(len(letters) / LETTERS_A_TYPO))):
        free = [i for i in places if chosen.isdisjoint(range(i - 2, i + 3))]
        if not free:
            break
        chosen.add(free[_pick(draws, len(free))])
    for i in sorted(chosen, reverse=True):
        text = _mistyped(text, i, draws)
    return text


def _mistyped(text: str, i: int, draws: random.Random) -> str:
    """The text with one typing error at a letter, of the kinds that change it."""
    letter, follows = text[i], text[i + 1 : i + 2]
    keys = BESIDE.get(letter.lower(), "")
    key = keys[_pick(draws, len(keys))] if keys else ""
    ways = [
        text[:i] + follows + letter + text[i + 2 :] if follows.isalpha() else text,
        text[:i] + text[i + 1 :],
        text[:i] + letter + text[i:],
        text[:i] + (key.upper() if letter.isupper() else key) + text[i + 1 :] if key else text,
    ]
    ways = [way for way in ways if way != text]
    return ways[_pick(draws, len(ways))]


def _upper(text: str, draws: random.Random) -> str:
    return text.upper()


def _lower(text: str, draws: random.Random) -> str:
    return text.lower()


def _polite(text: str, draws: random.Random) -> str:
    """A greeting before the text, thanks behind it, or both."""
    prefix, suffix, sides = (_pick(draws, count) for count in (len(PREFIXES), len(SUFFIXES), 3))
    return (PREFIXES[prefix] if sides != 1 else "") + text.rstrip() + (SUFFIXES[suffix] if sides != 0 else "")


def _punctuation(text: str, draws: random.Random) -> str:
    """Commas and the end's sign dropped, doubled or set apart, or words set apart twice; one that changes the text."""
    ways = [
        _END.sub("", _COMMA.sub("", text)),
        _COMMA.sub(",,", _END.sub(lambda found: found.group().rstrip() * 2, text)),
        _STOP.sub(r" \1", text),
        re.sub(r"(?<=\S) (?=\S)", "  ", text),
        text if _END.search(text) else f"{text.rstrip()}.",
    ]
    ways = [way for way in ways if way != text]
    return ways[_pick(draws, len(ways))] if ways else text


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "typos": _typos,
    "upper": _upper,
    "lower": _lower,
    "polite": _polite,
    "punctuation": _punctuation,
}
