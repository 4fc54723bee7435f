"""What has to be the same for a version to come out again, held against what is here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.release.ancestry import Ancestry

SHOWN = 12  # digits of a digest that a reader compares


@dataclass(frozen=True)
class Here:
    """What this machine has: code, lock file, libraries, and the base's and the sources' content.

    `base_files` are of a local base, empty for one of the Hub. `sources` are digests by name; None is a source whose
    content is known only after it was read, or that isn't there.
    """

    commit: str | None
    dirty: bool
    code: str
    lock: str
    libraries: Mapping[str, str]
    base: str | None
    base_files: Mapping[str, str]
    sources: Mapping[str, str | None]
    known_commit: bool = False


@dataclass(frozen=True)
class Condition:
    """One thing that has to be the same. `differs` says what doesn't, line by line; empty where all is the same."""

    name: str
    told: str
    differs: list[str] = field(default_factory=list)


def conditions(origin: Ancestry, here: Here, endpoints: Sequence[str] = ()) -> list[Condition]:
    """All of them, in the order in which they are told; `endpoints` are the addresses of teachers that answer."""
    return [
        _code(origin, here),
        _lock(origin, here),
        _libraries(origin, here),
        _base(origin, here),
        _sources(origin, here),
        *([_teacher(endpoints)] if endpoints else []),
    ]


def same_code(origin: Ancestry, here: Here) -> bool:
    """Whether the package here is the one that made the version."""
    if origin.code is not None and origin.code == here.code:
        return True
    return not (origin.dirty or here.dirty) and origin.commit is not None and origin.commit == here.commit


def _code(origin: Ancestry, here: Here) -> Condition:
    if same_code(origin, here):
        shown = f"commit {short(origin.commit)}" if origin.commit else f"package {short(origin.code)}"
        return Condition("code", shown if not origin.dirty else f"{shown}, package {short(here.code)}")
    if origin.commit is None:
        return Condition("code", "", ["the version was made outside of a git checkout, and this package is another"])
    told = f"commit {short(origin.commit)}, in a working tree of its own (here is {_where(here)})"
    if origin.dirty:
        lost = f"made with changes on top of commit {short(origin.commit)} that nobody kept"
        return Condition("code", told, [lost])
    if not here.known_commit:
        missing = f"commit {origin.commit} isn't in this repository; fetch it (here is {_where(here)})"
        return Condition("code", told, [missing])
    return Condition("code", told)


def _where(here: Here) -> str:
    if here.commit is None:
        return "no git checkout"
    return f"{short(here.commit)}{' with changes' if here.dirty else ''}"


def _lock(origin: Ancestry, here: Here) -> Condition:
    if origin.lock == here.lock:
        return Condition("lock", f"requirements.lock {short(here.lock)}")
    told = f"requirements.lock: {short(origin.lock)} then, {short(here.lock)} here; the version holds the one of then, "
    return Condition("lock", "", [told + "from which an environment can be made"])


def _libraries(origin: Ancestry, here: Here) -> Condition:
    differs = [
        f"{name}: {value} then, {here.libraries.get(name, 'none')} here"
        for name, value in sorted(origin.libraries.items())
        if here.libraries.get(name) != value
    ]
    return Condition("libraries", ", ".join(f"{name} {value}" for name, value in origin.libraries.items()), differs)


def _base(origin: Ancestry, here: Here) -> Condition:
    name, revision = origin.base["id"], str(origin.base["revision"])
    if here.base == revision:
        return Condition("base", f"{name} at {_revision(revision)}")
    known = origin.base.get("files") or {}
    files = [file for file in sorted({*known, *here.base_files}) if known.get(file) != here.base_files.get(file)]
    named = f" ({', '.join(files)})" if known and here.base_files and files else ""
    return Condition("base", "", [f"{name}: {_revision(revision)} then, {_revision(here.base)} here{named}"])


def _sources(origin: Ancestry, here: Here) -> Condition:
    differs, unknown = [], []
    for source in origin.sources:
        name, then = str(source["name"]), source.get("sha256") or source.get("revision")
        now = here.sources.get(name)
        if now is None and source.get("kind") in ("sql", "traces"):
            unknown.append(name)
        elif then is not None and now != then:
            found = "not there" if now is None else f"{short(now)} here"
            differs.append(f"{name} ({source.get('place')}): sha256 {short(then)} then, {found}")
    told = ", ".join(str(source["name"]) for source in origin.sources)
    return Condition("sources", f"{told} ({', '.join(unknown)}: known once read)" if unknown else told, differs)


def _teacher(endpoints: Sequence[str]) -> Condition:
    return Condition("teacher", "", [f"{address}: an endpoint may answer otherwise today" for address in endpoints])


def short(digest: str | None) -> str:
    """The beginning of a digest, for people."""
    return str(digest).removeprefix("sha256:")[:SHOWN] if digest else "none"


def _revision(value: str | None) -> str:
    return "nothing" if value is None else f"sha256 {short(value)}" if value.startswith("sha256:") else short(value)
