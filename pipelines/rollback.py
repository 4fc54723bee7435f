"""alias -> the version that held it before."""

import tempfile
from pathlib import Path
from typing import NoReturn

from pipelines.config.schema import Config
from pipelines.errors import Refused, UserError
from pipelines.progress import say
from pipelines.release import suffixes
from pipelines.release.decision import FILE, Decision
from pipelines.release.ruling import Ruling
from pipelines.tracking import moves
from pipelines.tracking.copying import Registry
from pipelines.tracking.registry import Version
from pipelines.tracking.run import Run, started
from pipelines.tracking.who import signed


def act(config: Config) -> None:
    """Moves the alias back, its bytes checked first, in a run of its own.

    Raises UserError where there is nothing to go back to, Refused where the bytes changed or another was first.
    """
    name, alias = config.rollback.model, config.rollback.alias
    with started("rollback", {"stage": "rollback"}) as run:
        told = signed(run.id, config.rollback.reason)
        holder = moves.settled(Registry().client, name, alias, told)
        to = _earlier(name, alias, holder, config.rollback.to)
        version = Registry().find(name, to)
        decision = Decision(version.uri, f"models:/{name}@{alias}", "rollback", holder, None, told)
        _check(version, decision)
        if decision.failed:
            _refuse(decision, version, run)
        decision.digest, decision.copy = version.digest, version.uri
        run.data(decision.as_json(), FILE)
        _move(version, decision, run)
        say(f"  {version.uri} is {name}@{alias} again, after {holder or 'nobody'}")


def _earlier(name: str, alias: str, holder: str | None, asked: int | None) -> str:
    """The holder before, or the one that is asked for, if it is still registered. Raises UserError."""
    client = Registry().client
    held = [number for number in moves.held_before(moves.history(name, client), alias) if number != holder]
    there = [number for number in held if moves.is_there(client, name, number)]
    if not there:
        raise UserError(f"rollback.alias: nobody held models:/{name}@{alias} before; promote a version instead")
    if asked is not None and str(asked) not in there:
        raise UserError(
            f"rollback.to: expected a version that held models:/{name}@{alias} before: "
            f"{', '.join(dict.fromkeys(there))}; got {asked}"
        )
    return there[-1] if asked is None else str(asked)


def _check(version: Version, decision: Decision) -> None:
    """A ruling on its bytes: what is gone back to must be what it was."""
    found, passed = "every file as registered", True
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as temporary:
        try:
            suffixes.check(Registry().download(version, Path(temporary) / "files"), version.uri)
        except UserError as error:
            found, passed = str(error), False
    reason = "a version whose files were changed isn't the one that was judged"
    decision.rulings.append(Ruling("integrity", "seal.json", "every file as registered", found, passed, reason))


def _move(version: Version, decision: Decision, run: Run) -> None:
    about = {
        "alias": decision.alias,
        "from": decision.incumbent,
        "to": version.number,
        "kind": "rollback",
        "digest": version.digest,
        **decision.signed,
    }
    try:
        moves.move(Registry().client, version.name, about)
    except moves.Lost as lost:
        say(f"  {lost}")
        holder = moves.holder_of(Registry().client, version.name, decision.alias)
        reason = "whoever was first saw another holder"
        before = decision.incumbent or "nobody"
        about_holder = f"holder of {decision.target}"
        decision.rulings.append(Ruling("race", about_holder, before, holder or "nobody", False, reason))
        _refuse(decision, version, run)


def _refuse(decision: Decision, version: Version, run: Run) -> NoReturn:
    run.data(decision.as_json(), FILE)
    for ruling in decision.rulings:
        say(f"  {ruling}")
    raise Refused(f"{decision.target} doesn't go back to {version.uri}: rollback fails {', '.join(decision.failed)}")
