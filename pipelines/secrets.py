"""What is secret, by what it looks like or by where it stands, and texts without it.

A secret is the value of an environment variable whose name says so or that the configuration names (`env:NAME`), or a
text that has the form of a known service's key. Digests, identifiers of runs and ordinary words aren't touched.
"""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pipelines.secret_kinds import KINDS, MASK, NAME

SHORTEST = 6  # a shorter value would be found in ordinary words and numbers
CERTAIN = 20  # at least as long, a value is no word
LONGEST_KEPT = 200  # texts whose masked form is remembered: names of metrics come with every step

# Names of variables: `KEY` alone says it there.
_VARIABLE = re.compile(
    r"(?:^|_)(?:PASS|PASSWORD|PASSWD|PASSPHRASE|PASSCODE|PWD|SECRETS?|TOKENS?|(?:API)?KEYS?|CREDENTIALS?|DSN|AUTH)"
    r"(?:_|\d|$)",
    re.IGNORECASE,
)
_SECRET_FIELD = re.compile(rf"(?:^|[._-]){NAME}$", re.IGNORECASE)
_NAMED = re.compile(r"^env:([A-Za-z_][A-Za-z0-9_]*)$")

# Names of variables that a configuration names: processes that are started from here know them too.
WATCHED = "TUNESMITH_SECRET_VARIABLES"
_NO_SECRETS = {"PWD", "OLDPWD", WATCHED}


def masked(text: str) -> str:
    """The text with `<masked>` in place of every secret."""
    return _plain(text, _environment())


def masked_values(value: Any, name: str = "") -> Any:
    """Nested mappings and lists without the secrets of their texts; `name` is the last key on the way to a value."""
    return _values(value, name, _environment())


def found(text: str) -> str | None:
    """What kind of secret the text holds; None where it holds none."""
    kind = next((kind.name for kind in KINDS if kind.pattern.search(text)), None)
    known = _environment()
    if kind is None and known is not None and known.search(text):
        return "the value of a secret environment variable"
    return kind


def _environment() -> re.Pattern[str] | None:
    return _known(tuple(os.environ.items()))


def _plain(text: str, known: re.Pattern[str] | None) -> str:
    if known is not None:
        text = known.sub(MASK, text)
    return _patterned_again(text) if len(text) <= LONGEST_KEPT else _patterned(text)


def _values(value: Any, name: str, known: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        plain = _plain(value, known)
        return MASK if plain == value and _SECRET_FIELD.search(name) and _is_telling(value) else plain
    if isinstance(value, Mapping):
        return {_values(key, "", known): _values(held, str(key), known) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_values(held, name, known) for held in value)
    return value


def watch(configuration: Mapping[str, Any]) -> None:
    """The variables that a configuration names hold secrets from now on, whatever their names."""
    names = sorted({*_named(configuration), *os.environ.get(WATCHED, "").split()})
    if names:
        os.environ[WATCHED] = " ".join(names)


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if reference := _NAMED.match(value):
            yield reference[1]
    elif isinstance(value, Mapping):
        for held in value.values():
            yield from _named(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _named(held)


def _patterned(text: str) -> str:
    for kind in KINDS:
        text = kind.pattern.sub(_replaced, text)
    return text


_patterned_again = lru_cache(4096)(_patterned)


def _replaced(match: re.Match[str]) -> str:
    return (match.groupdict().get("kept") or "") + MASK


@lru_cache(8)
def _known(environment: Sequence[tuple[str, str]]) -> re.Pattern[str] | None:
    """What matches the secret values of the environment, however they are written; None where there is none."""
    watched = frozenset(dict(environment).get(WATCHED, "").split())
    forms = {
        form for name, value in environment for secret in _secrets(name, value, watched) for form in _forms(secret)
    }
    forms |= _pairs(dict(environment))
    if not forms:
        return None
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(_whole(form) for form in longest_first))


def _whole(form: str) -> str:
    """A short value counts only where it is a word of its own."""
    if len(form) >= CERTAIN:
        return re.escape(form)
    return rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"


def _secrets(name: str, value: str, watched: frozenset[str]) -> Iterator[str]:
    """The secrets in a variable: its value, or, of an address, what in it is secret."""
    is_secret = (name in watched or _VARIABLE.search(name) is not None) and name not in _NO_SECRETS
    if "://" in value:
        inner = [text for text in _of_address(value) if len(text) >= SHORTEST]
        yield from inner
        if is_secret and name not in watched and not inner and not _is_place(value):
            yield value
    elif is_secret and _is_telling(value):
        yield value
        yield from (line for line in value.splitlines() if len(line) >= CERTAIN and not line.startswith("-----"))


def _of_address(address: str) -> Iterator[str]:
    try:
        parts = urlsplit(address)
        password = parts.password
    except ValueError:
        return
    if password:
        yield password
        yield unquote(password)
    yield from (
        text for key, text in parse_qsl(parts.query) if _SECRET_FIELD.search(key) or key.lower() in ("sig", "key")
    )


def _is_place(value: str) -> bool:
    return value.startswith(("file:", "sqlite:", "http://localhost", "http://127.0.0.1"))


def _is_telling(value: str) -> bool:
    """Whether a value can be a secret: no word, number, switch or path."""
    text = value.strip()
    if len(text) < SHORTEST or text.startswith(("/", "~", "./", "env:", "<")) or _is_number(text):
        return False
    if len(text) >= CERTAIN:
        return True
    digit, letter = any(sign.isdigit() for sign in text), any(sign.isalpha() for sign in text)
    mixed = text.lower() != text and text[1:].lower() != text[1:] and text.upper() != text
    strange = any(not sign.isalnum() and sign not in " _-./:," for sign in text)
    return (digit and letter) or mixed or strange


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return len(text) < CERTAIN


def _forms(secret: str) -> set[str]:
    """A value as it stands, in an address, and inside JSON or Python's quotes."""
    texts = {secret, secret.strip(), quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    return {text for text in texts if len(text) >= SHORTEST}


def _pairs(environment: Mapping[str, str]) -> set[str]:
    """User and password of one service, as an HTTP header joins them."""
    users = {name: value for name, value in environment.items() if name.endswith(("_USERNAME", "_USER"))}
    joined = set()
    for name, user in users.items():
        stem = name.rpartition("_")[0]
        for password in (environment.get(f"{stem}_PASSWORD"), environment.get(f"{stem}_TOKEN")):
            if password:
                joined.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    return joined
