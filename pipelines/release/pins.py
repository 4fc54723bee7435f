"""The distributions that serving needs, with all that they need, at the versions that are installed here."""

from collections.abc import Sequence
from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def pinned(required: Sequence[str]) -> list[str]:
    """`name==version` of each distribution and, recursively, of what it requires on this platform, by name.

    Build tags (`+cpu`) are left out: an index has the version, and a build for another machine will do. Raises
    PackageNotFoundError for one that is required and not installed.
    """
    found: dict[str, str] = {}
    waiting = [(name, frozenset[str]()) for name in required]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (canonicalize_name(name), extras) in seen:
            continue
        seen.add((canonicalize_name(name), extras))
        there = distribution(name)
        found[canonicalize_name(name)] = there.version.partition("+")[0]
        for text in there.requires or []:
            wanted = Requirement(text)
            if any(_applies(wanted, extra) for extra in ("", *extras)):
                waiting.append((wanted.name, frozenset(wanted.extras)))
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _applies(wanted: Requirement, extra: str) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})
