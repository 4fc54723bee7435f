"""Who holds an alias, and how it came to: an append-only ledger, because MLflow can't compare and set.

The ledger of `name` is a registered model, `name.moves`. The store numbers its versions, one by one and for all
writers, and each is a move with its tags. Everyone replays the ledger from its beginning: a move counts if it begins at
the holder that the moves before it lead to. Of two promoters at once both write, one finds that its move counts, and
the other that it doesn't. MLflow's alias follows the last move that counts; who finds it behind brings it there.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.gating import PREVIOUS
from pipelines.errors import Refused, Unreachable
from pipelines.tracking.patience import again

Kind = Literal["promote", "rollback", "forced", "observed"]
LEDGER = ".moves"
LOOKS = 4  # at an alias that isn't where the ledger says, before a person is taken to have moved it
LOOK_EVERY_S = 0.5
STEPS = 50  # of bringing an alias to where the ledger ends
GONE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


@dataclass(frozen=True)
class Move:
    """One entry of a ledger: versions by their numbers, None for nobody; `at` is UTC, ISO 8601.

    `valid` says that it counts, `done` that the alias was seen where it leads.
    """

    number: int
    alias: str
    from_: str | None
    to: str | None
    kind: str
    by: str
    at: str
    run: str
    reason: str
    digest: str
    valid: bool
    done: bool
    attempt: str


class Lost(Refused):
    """Another promoter was first: its move counts, ours doesn't."""


def history(name: str, client: MlflowClient | None = None) -> list[Move]:
    """Every move of the aliases of a registered model, in the order in which they were written; empty without one."""
    found = _entries(client or MlflowClient(), name)
    holders: dict[str, str | None] = {}
    attempts: set[str] = set()
    moves = []
    for entry in found:
        tags = entry.tags
        alias, before, to = tags.get("alias", ""), tags.get("from") or None, tags.get("to") or None
        # A client that heard no answer writes again what may have been written: only the first counts.
        repeated = tags.get("attempt", "") in attempts
        valid = bool(alias) and not repeated and (alias not in holders or holders[alias] == before)
        attempts.add(tags.get("attempt") or f"none {entry.version}")
        if valid:
            holders[alias] = to
        moves.append(_move(entry, before, to, valid))
    return moves


def held_before(moves: Sequence[Move], alias: str) -> list[str]:
    """Who held an alias, the first one first and the holder last: a move adds to it, a rollback takes away."""
    stack: list[str] = []
    for move in moves:
        if not move.valid or move.alias != alias:
            continue
        if not stack and move.from_:
            stack.append(move.from_)
        if move.kind == "rollback" and move.to in stack:
            del stack[len(stack) - stack[::-1].index(move.to) :]
        elif move.to and (not stack or stack[-1] != move.to):
            stack.append(move.to)
    return stack


def settled(client: MlflowClient, name: str, alias: str, by: Mapping[str, str]) -> str | None:
    """Who holds an alias, once the ledger and MLflow agree.

    A move that counts and whose promoter is slow or dead is brought to its end. An alias that was moved by other means
    is kept in the ledger as observed; `by` names who saw it.
    """
    last, holder = _last(client, name, alias), holder_of(client, name, alias)
    for _ in range(LOOKS):
        if last is None or (last.done and last.to == holder):
            return holder
        if not last.done and is_there(client, name, last.to):
            return _follow(client, name, alias)
        # A slow promoter may be passing: it puts the alias back itself.
        time.sleep(LOOK_EVERY_S)
        last, holder = _last(client, name, alias), holder_of(client, name, alias)
    if last is None:
        return holder
    seen = {"alias": alias, "from": last.to, "to": holder, "kind": "observed", **by}
    # Where the holder was deleted nobody holds the alias, and there is no version to point at.
    _write(client, name, seen, f"models:/{name}{LEDGER}/{last.number}")
    return _follow(client, name, alias)


def move(client: MlflowClient, name: str, about: Mapping[str, str | None]) -> Move:
    """Moves an alias from one version to another, both named in `about`, if nobody else has moved it.

    `about` holds alias, from, to, kind, by, at, run, reason and digest. Raises Lost where another was first; the alias
    is then as that one left it. Raises Unreachable where the store stays locked or away.
    """
    alias = str(about["alias"])
    attempt = _write(client, name, about, f"models:/{name}/{about['to']}")
    moves = history(name, client)
    ours = [one for one in moves if one.attempt == attempt]
    if not any(one.valid for one in ours):
        first = next((one for one in reversed(moves) if one.valid and one.alias == alias), None)
        told = f"{first.by} moved it to {first.to} at {first.at} ({name}{LEDGER} {first.number})" if first else "?"
        raise Lost(
            f"models:/{name}@{alias}: race: expected {about['from'] or 'nobody'} to hold it when "
            f"{about['to']} takes it, but {told}"
        )
    _follow(client, name, alias)
    return next(one for one in history(name, client) if one.attempt == attempt and one.valid)


def holder_of(client: MlflowClient, name: str, alias: str) -> str | None:
    """The number of the version that MLflow says holds an alias."""
    try:
        return str(again(lambda: client.get_model_version_by_alias(name, alias)).version)
    except MlflowException as error:
        # The alias may be free and the model may be new; MLflow has a code for each.
        if error.error_code in GONE:
            return None
        raise


def is_there(client: MlflowClient, name: str, number: str | None) -> bool:
    """Whether the registry still holds a version; nobody is always there."""
    try:
        return number is None or bool(again(lambda: client.get_model_version(name, number)))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def make_model(client: MlflowClient, name: str) -> None:
    """A registered model of that name, where there is none."""
    try:
        again(lambda: client.get_registered_model(name))
        return
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    try:
        again(lambda: client.create_registered_model(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _follow(client: MlflowClient, name: str, alias: str) -> str | None:
    """Brings the alias, and its previous one, to where the ledger ends; returns who holds it then."""
    for _ in range(STEPS):
        before = _last(client, name, alias)
        if before is None:
            return holder_of(client, name, alias)
        if holder_of(client, name, alias) != before.to:
            _point(client, name, alias, before.to)
        moves = history(name, client)
        last = next(one for one in reversed(moves) if one.valid and one.alias == alias)
        # Whoever was first between our two looks has to find its own alias, not ours.
        if last.number == before.number and holder_of(client, name, alias) == last.to:
            earlier = reversed(held_before(moves, alias)[:-1])
            _point(client, name, f"{alias}{PREVIOUS}", next((n for n in earlier if is_there(client, name, n)), None))
            if not last.done:
                _end(client, name, last)
            return last.to
    raise Unreachable(f"models:/{name}@{alias}: it was moved {STEPS} times while it was looked at; try again later")


def _end(client: MlflowClient, name: str, last: Move) -> None:
    again(lambda: client.set_model_version_tag(f"{name}{LEDGER}", str(last.number), "done", "true"))


def _point(client: MlflowClient, name: str, alias: str, number: str | None) -> None:
    if number is not None:
        again(lambda: client.set_registered_model_alias(name, alias, number))
    elif holder_of(client, name, alias) is not None:
        again(lambda: client.delete_registered_model_alias(name, alias))


def _last(client: MlflowClient, name: str, alias: str) -> Move | None:
    """The last move of an alias that counts."""
    return next((one for one in reversed(history(name, client)) if one.valid and one.alias == alias), None)


def _write(client: MlflowClient, name: str, about: Mapping[str, str | None], source: str) -> str:
    """Writes an entry, whose number is its place in line; returns the mark by which its writer knows it again."""
    ledger, attempt = f"{name}{LEDGER}", uuid.uuid4().hex
    make_model(client, ledger)
    tags = {key: value or "" for key, value in about.items()} | {"attempt": attempt}
    again(lambda: _once(client, ledger, source, tags))
    return attempt


def _once(client: MlflowClient, ledger: str, source: str, tags: dict[str, str]) -> None:
    """The entry, unless an earlier try was written after all."""
    if any(entry.tags.get("attempt") == tags["attempt"] for entry in _entries_of(client, ledger)):
        return
    client.create_model_version(ledger, source, tags=tags)


def _entries(client: MlflowClient, name: str) -> list[ModelVersion]:
    return again(lambda: _entries_of(client, f"{name}{LEDGER}"))


def _entries_of(client: MlflowClient, ledger: str) -> list[ModelVersion]:
    """In the order of their numbers."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{ledger}'", max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda entry: int(entry.version))


def _move(entry: ModelVersion, before: str | None, to: str | None, valid: bool) -> Move:
    tags = entry.tags
    told = {name: tags.get(name, "") for name in ("alias", "kind", "by", "at", "run", "reason", "digest", "attempt")}
    return Move(int(entry.version), from_=before, to=to, valid=valid, done=tags.get("done") == "true", **told)
