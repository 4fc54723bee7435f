"""Text -> token ids, each piece between two certain token boundaries tokenised once.

Where a boundary is certain, the ids of a text are those of its pieces put together, and words come again and
again. A cut is certain before a special token, which every tokenizer takes out of the text before anything else.
With the pre-tokenizers listed here, whose patterns match a space only as a word's first character or in white
space and a digit only beside digits, a cut is certain also after a special token, between printable ASCII and a
space, between an ASCII digit and other ASCII, and between a line feed and an ASCII letter or digit.
"""

import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain
from typing import Any

KEPT_TOKENS = 2**19
# A number with the space before it, or else all up to a cut.
WORDS = re.compile(
    r" ?[0-9]++(?=[\n -/:-~])"
    r"|(?:[0-9]++|[\s\S])[^ 0-9\n]*+(?:(?:(?<![!-~])(?: |[0-9]++)|\n(?![A-Za-z0-9]))[^ 0-9\n]*+)*+\n?+"
)

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NO_WORD = r"[^\r\n\p{L}\p{N}]?"
PATTERNS = frozenset(
    {
        # Qwen2 and Qwen3; Llama 3; Qwen3.5; gpt-oss
        rf"{_CONTRACTION}|{_NO_WORD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}",
        rf"{_CONTRACTION}|{_NO_WORD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}",
        rf"{_CONTRACTION}|{_NO_WORD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}",
        rf"{_NO_WORD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_NO_WORD}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}",
    }
)


class PieceTokenizer:
    """A tokenizer that remembers pieces; what it gives equals `tokenizer(text, add_special_tokens=False)`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = _special_tokens(tokenizer)
        self.words = _cuts_words(tokenizer, self.special)
        self.known = _Known(tokenizer)
        if tokenizer.is_fast:
            # An earlier call of the tokenizer leaves its truncation and padding set.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.encode_special_tokens = tokenizer.split_special_tokens

    def encode(self, text: str) -> "Encoded":
        """The tokens of a text."""
        self.known.limit()
        ids: list[int] = []
        parts, starts, firsts, start = self._parts(text), [], [], 0
        for index, part in enumerate(parts):
            starts.append(start)
            firsts.append(len(ids))
            start += len(part)
            pieces = WORDS.findall(part) if self.words and not index % 2 else [part]
            ids.extend(chain.from_iterable(map(self.known.__getitem__, pieces)))
        return Encoded(ids, parts, starts, firsts, self)

    def _parts(self, text: str) -> list[str]:
        """The text cut at special tokens: every other part is one, or, where words aren't cut, begins with one."""
        if self.special is None:
            return [text]
        found = self.special.split(text)
        if self.words:
            return found
        return [found[0], *(special + after for special, after in zip(found[1::2], found[2::2], strict=True))]

    def tail(self, prompt: str, text: str, encoded: "Encoded") -> tuple[int, list[int]]:
        """(n, tail): the prompt's tokens are the first n of the text, which is `encoded`, and then those of `tail`."""
        if self.special is not None and text.startswith(prompt):
            for index in reversed(range(len(encoded.parts))):
                special, start = self.special.match(encoded.parts[index]), encoded.starts[index]
                if special and start + special.end() <= len(prompt):
                    return encoded.firsts[index], self.encode(prompt[start:]).ids
        return 0, self.encode(prompt).ids


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text's token ids and parts, with the first character and the first token of each part."""

    ids: list[int]
    parts: list[str]
    starts: list[int]
    firsts: list[int]
    source: PieceTokenizer

    def token_at(self, char: int) -> int | None:
        """The index of the character's token; None where it lies in none (a space that the tokenizer drops)."""
        index = bisect_right(self.starts, char) - 1
        if self.source.words and index % 2:
            return self.firsts[index]
        end, first = self._piece(index, char)
        if first is not None:
            return first
        before = max(index - 1, 0)  # what the first token's offsets are told depends on its place
        window = "".join(self.parts[before:index]) + self.parts[index][:end]
        encoding = self.source.tokenizer.backend_tokenizer.encode(window, add_special_tokens=False)
        local = encoding.char_to_token(char - self.starts[before])
        return None if local is None else self.firsts[before] + int(local)

    def _piece(self, index: int, char: int) -> tuple[int, int | None]:
        """Where in its part the character's piece ends, and the piece's first token if that surely holds it."""
        part, within, first = self.parts[index], char - self.starts[index], self.firsts[index]
        for match in WORDS.finditer(part) if self.source.words else ():
            if match.end() > within:
                begins = match.start() == within and part[within].isascii() and part[within].isalnum()
                return match.end(), first if begins else None
            first += len(self.source.known[match.group()])
        return len(part), None


class _Known(dict[str, tuple[int, ...]]):
    """Pieces and their token ids, tokenised when first asked for."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer, self.kept = tokenizer, 0

    def __missing__(self, piece: str) -> tuple[int, ...]:
        found = self[piece] = tuple(self._ids(piece))
        self.kept += len(found)
        return found

    def limit(self) -> None:
        """Forgets all once it is much."""
        if self.kept > KEPT_TOKENS:
            self.clear()
            self.kept = 0

    def _ids(self, piece: str) -> list[int]:
        if not self.tokenizer.is_fast:
            found: list[int] = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
            return found
        return list(self.tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).ids)


def _special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Special tokens that no neighbour can change: their place in the text is theirs whatever stands around."""
    added = list(tokenizer.added_tokens_decoder.values())
    if not tokenizer.is_fast or tokenizer.split_special_tokens or any(token.single_word for token in added):
        return None
    inner = {character for token in added for character in token.content[1:]}
    chosen = [
        token.content
        for token in added
        if token.special
        and not (token.normalized or token.lstrip or token.rstrip)
        # Else another token could start before it or at it and reach over it.
        and token.content[0] not in inner
        and not any(other.content.startswith(token.content) for other in added if other.content != token.content)
    ]
    return re.compile(f"({'|'.join(map(re.escape, chosen))})") if chosen else None


def _cuts_words(tokenizer: Any, special: re.Pattern[str] | None) -> bool:
    """Whether words can be cut out, by the tokenizer's own settings."""
    if special is None:
        return False
    backend = tokenizer.backend_tokenizer
    added = tokenizer.added_tokens_decoder.values()
    return (
        all(_stays_whole(token) or special.fullmatch(token.content) for token in added)
        and _settings(backend.normalizer) in ({}, {"type": "NFC"})
        and not getattr(backend.model, "dropout", None)
        and _splits_words(_settings(backend.pre_tokenizer))
    )


def _stays_whole(token: Any) -> bool:
    """Whether no cut can fall into an added token, nor the token reach over one."""
    within = re.search(r"^[A-Za-z0-9]|[0-9\s]", token.content)
    return not (within or token.single_word or token.lstrip or token.rstrip)


def _splits_words(settings: dict[str, Any]) -> bool:
    parts = settings["pretokenizers"] if settings.get("type") == "Sequence" else [settings]
    match parts:
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern in PATTERNS
    return False


def _settings(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(part.__getstate__()) if part is not None else {}
    return found
