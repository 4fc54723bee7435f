"""version + gate -> its bytes in the target and the alias moved, or a refusal on record."""

import tempfile
from pathlib import Path
from typing import Any, NoReturn

from pipelines.config.schema import Config
from pipelines.errors import Refused, UserError
from pipelines.product import Product
from pipelines.progress import say
from pipelines.release import gate, suffixes
from pipelines.release.decision import FILE, Decision
from pipelines.release.evidence import Evidence
from pipelines.release.ruling import Ruling
from pipelines.tracking import judged, moves, registry
from pipelines.tracking.copying import Registry
from pipelines.tracking.registry import Version
from pipelines.tracking.run import Run
from pipelines.tracking.who import signed

NOBODY = 0  # in promote.expect


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Copies the version and moves the alias where every rule passes; records the decision either way.

    Raises Refused.
    """
    made = inputs["version"].about if "version" in inputs else None
    source = registry.named(config.promote.model, "promote.model", made)
    asked, there = config.promote, Registry(config.promote.registry)
    name = asked.name or source.name
    told = signed(run.id, asked.reason)
    incumbent = moves.settled(there.client, name, asked.to, told)
    decision = Decision(
        model=source.uri,
        target=f"models:/{name}@{asked.to}",
        gate=config.gate.name,
        incumbent=incumbent,
        forced=asked.reason if asked.force else None,
        signed=told,
        registry=asked.registry,
    )
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as temporary:
        folder = _sound(source, Path(temporary) / "files", decision)
        if folder is not None:
            decision.digest = source.digest
            decision.rulings += gate.judge(
                config.gate, judged.evidence(source, folder), _incumbent(config, there, name, incumbent, temporary)
            )
        _expected(asked.expect, decision)
        for ruling in decision.rulings:
            say(f"  {ruling}")
        if folder is None or not decision.is_yes:
            _refuse(decision, source, run)
        copy = there.copied(name, folder, source)
    _moved(there, source, copy, decision, run)
    (work / FILE).write_text(decision.as_json(), encoding="utf-8")
    return {"name": name, "version": copy.number, "alias": asked.to, "registry": asked.registry}


def unneeded(config: Config) -> tuple[str, ...]:
    """A model named by URI needs no version of this configuration."""
    return ("version",) if config.promote.model else ()


def is_current(config: Config, found: Product) -> bool:
    """Whether the alias still points where this decision moved it; a model named by URI is judged every time."""
    if config.promote.model:
        return False
    client = Registry(found.about["registry"]).client
    return moves.holder_of(client, found.about["name"], found.about["alias"]) == found.about["version"]


def _sound(source: Version, folder: Path, decision: Decision) -> Path | None:
    """The version's files in `folder`; None, and a ruling that says why, where they aren't those registered."""
    try:
        folder = Registry().download(source, folder)
        suffixes.check(folder, source.uri)
    except UserError as error:
        reason = "what was evaluated and what runs are the same bytes, and reading them runs nothing"
        decision.rulings.append(Ruling("integrity", "seal.json", "every file as registered", str(error), False, reason))
        return None
    return folder


def _incumbent(config: Config, there: Registry, name: str, number: str | None, temporary: str) -> Evidence | None:
    """Who holds the alias, read only where the gate compares with it."""
    if number is None or not any(rule.against == "incumbent" for rule in config.gate.compare.values()):
        return None
    version = there.find(name, number)
    try:
        folder = there.download(version, Path(temporary) / "incumbent")
    except UserError as error:
        say(f"  {error}")
        folder = Path(temporary) / "nothing"
    return judged.evidence(version, folder)


def _expected(expect: int | None, decision: Decision) -> None:
    """A ruling, where the caller says who must hold the alias and someone else does."""
    wanted = None if expect in (None, NOBODY) else str(expect)
    if expect is not None and wanted != decision.incumbent:
        decision.rulings.append(_race(decision.target, wanted, decision.incumbent))


def _race(target: str, wanted: str | None, found: str | None) -> Ruling:
    reason = "a decision that rests on another holder is no decision about this one"
    return Ruling("race", f"holder of {target}", wanted or "nobody", found or "nobody", False, reason)


def _moved(there: Registry, source: Version, copy: Version, decision: Decision, run: Run) -> None:
    """Moves the alias to the copy and says so on both versions. Raises Refused where another promoter was first."""
    decision.copy = copy.uri
    # On record before the alias moves: nothing is ever served that no run accounts for.
    run.data(decision.as_json(), FILE)
    if decision.incumbent != copy.number:
        about = {
            "alias": decision.alias,
            "from": decision.incumbent,
            "to": copy.number,
            "kind": "forced" if decision.is_overruled else "promote",
            "digest": source.digest,
            **decision.signed,
        }
        try:
            moves.move(there.client, copy.name, about)
        except moves.Lost as lost:
            holder = moves.holder_of(there.client, copy.name, decision.alias)
            decision.rulings.append(_race(decision.target, decision.incumbent, holder))
            say(f"  {lost}")
            _refuse(decision, source, run)
    there.tag(copy, decision.tags(), "gate.")
    if (decision.registry, copy.uri) != (None, source.uri):
        Registry().tag(source, decision.tags(), "gate.")
    of = "" if copy.uri == source.uri else f", the bytes of {source.uri},"
    say(f"  {copy.uri}{of} is now {copy.name}@{decision.alias}")


def _refuse(decision: Decision, source: Version, run: Run) -> NoReturn:
    """Puts the refusal on record. Raises Refused."""
    run.data(decision.as_json(), FILE)
    Registry().tag(source, decision.tags(), "gate.")
    named = ", ".join(decision.failed)
    raise Refused(f"{source.uri} is not promoted to {decision.alias}: gate {decision.gate} fails {named}")
