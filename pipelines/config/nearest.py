"""The valid name that a mistyped one most likely meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str:
    """The closest valid name; the first one where nothing is close; "" where nothing is valid."""
    names = sorted(set(valid))
    return (difflib.get_close_matches(name, names, n=1, cutoff=0.0) or names or [""])[0]


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A clause for an error message, empty where there is nothing to suggest."""
    guess = nearest(name, valid)
    return f"; nearest valid name: {guess}" if guess else ""
