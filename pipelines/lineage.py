"""version -> the chain from source rows to alias, as a tree and a picture, and every move of its aliases."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.chosen import chosen
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.progress import say
from pipelines.release import ancestry
from pipelines.release.ancestry import Ancestry
from pipelines.release.family import Family, Holder, Parent, tree
from pipelines.release.picture import picture
from pipelines.release.sameness import short
from pipelines.tracking import moves, provenance, registry
from pipelines.tracking.moves import Move
from pipelines.tracking.provenance import Registered
from pipelines.tracking.registry import Version
from pipelines.tracking.run import started

SCORES = "artifacts/scores.json"
GENERATIONS = 20  # of adapters trained on from one another


def act(config: Config) -> None:
    """Prints the tree and the moves, and draws the picture; a name alone lists its versions and moves in short.

    Raises UserError where there is no such version, or its files aren't those that were registered.
    """
    asked = config.lineage.model
    if asked is not None and not asked.startswith("models:"):
        _in_short(asked)
        return
    version = chosen(config, asked, "lineage.model")
    family = _family(version)
    text = str(tree(family))
    names = [version.name, *sorted({_name(copy) for copy in family.copies} - {version.name})]
    told = [line for name in names for line in _moves(name)]
    for line in (text, "", *told):
        say(line)
    drawn = picture(family, config.lineage.picture)
    folder = PROJECT / config.paths.outputs / "lineage" / f"{version.name}-{version.number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lineage.txt").write_text("\n".join([text, "", *told]) + "\n", encoding="utf-8")
    (folder / f"lineage.{config.lineage.picture}").write_bytes(drawn)
    with started("lineage", {"stage": "lineage", "version": version.uri}) as run:
        for file in ("lineage.txt", f"lineage.{config.lineage.picture}"):
            run.file(folder / file)
    say(f"lineage: drawn in {_shown(folder)} (run {run.id})")


def _in_short(name: str) -> None:
    """Every version of a registered model in a line, and the moves of its aliases."""
    found = provenance.versions(name)
    if not found:
        raise UserError(f"lineage.model: no registered model {name}; expected one's name, or models:/name/version")
    say(f"{name}: {len(found)} version{'s' if len(found) > 1 else ''}")
    for one in found:
        tags = one.version.tags
        accuracy = tags.get("correctness.accuracy")
        told = [_at(one), f"adapter {short(tags.get('adapter.digest'))} by {tags.get('adapter.stage', 'nobody known')}"]
        told += [f"accuracy {float(accuracy):.1%}"] if accuracy else []
        told += [tags[tag] for tag in ("gate.result",) if tag in tags]
        told += [f"copied from {tags[provenance.COPY_OF]}"] if provenance.COPY_OF in tags else []
        told += [f"@{alias}" for alias in one.aliases]
        say(f"  {one.version.number}  {', '.join(told)}")
    for line in _moves(name):
        say(line)


def _family(version: Version) -> Family:
    """All that registry, files and runs know of a version."""
    folder = registry.files(version)
    made = ancestry.read(folder, version.uri)
    parents = list(_parents(made))
    runs = [made.adapter.get("run"), made.scores.get("run"), *(parent.run for parent in parents)]
    return Family(
        version=_holder(provenance.registered(version)),
        tags=version.tags,
        digest=version.digest,
        ancestry=made,
        metrics=_metrics(folder),
        parents=parents,
        copies=[_holder(copy) for copy in provenance.copies(version)],
        runs={run_id: provenance.has_run(run_id) for run_id in runs if run_id},
    )


def _metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / SCORES).read_text(encoding="utf-8"))["metrics"]
    return found


def _parents(made: Ancestry) -> Iterator[Parent]:
    """The adapter that training went on from, that one's, and so on as far as runs are left."""
    digest = made.parent
    for _ in range(GENERATIONS):
        if digest is None:
            return
        run_id, manifest = provenance.maker(digest) or (None, {})
        version = provenance.with_tag("adapter.digest", digest)
        stage = _of(manifest, "made_by").get("stage") or (version.tags.get("adapter.stage") if version else None)
        yield Parent(digest, stage, run_id, version.uri if version else None)
        before = version.tags.get("adapter.parent") if version else None
        digest = (_of(manifest, "about").get("parent") or {}).get("digest") or (before if before != "None" else None)


def _of(manifest: Any, name: str) -> dict[str, Any]:
    return dict(manifest.get(name) or {})


def _moves(name: str) -> list[str]:
    """Every move of a model's aliases, a line each."""
    found = moves.history(name)
    if not found:
        return [f"moves of {name}: none on record"]
    return [f"moves of {name}", *(f"  {line}" for line in _lines(found))]


def _lines(found: Sequence[Move]) -> Iterator[str]:
    for move in found:
        told = f"{move.number}  {move.at}  {move.alias}: {move.from_ or 'nobody'} -> {move.to or 'nobody'}, {move.kind}"
        told += f" by {move.by}" if move.by else ""
        told += f" ({move.reason})" if move.reason else ""
        yield told if move.valid else f"{told}; was too late, doesn't count"


def _holder(one: Registered) -> Holder:
    return Holder(one.version.uri, _at(one), one.aliases)


def _at(one: Registered) -> str:
    return f"{one.at:%Y-%m-%d %H:%M:%S} UTC"


def _name(holder: Holder) -> str:
    return holder.uri.removeprefix("models:/").rpartition("/")[0]


def _shown(folder: Path) -> str:
    return str(folder.relative_to(PROJECT)) if folder.is_relative_to(PROJECT) else str(folder)
