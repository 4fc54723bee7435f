"""A version's whole chain, from source rows to alias: what is known of it, and as a tree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.release.ancestry import Ancestry
from pipelines.release.sameness import short
from pipelines.release.tree import Node

ACCURACY = "eval/correctness/accuracy"


@dataclass(frozen=True)
class Parent:
    """An adapter that another was trained on from: who made it, as far as anybody still knows."""

    digest: str
    stage: str | None
    run: str | None
    version: str | None


@dataclass(frozen=True)
class Holder:
    """A version or a copy of it: when it was registered (UTC), and the aliases that it holds now."""

    uri: str
    at: str
    aliases: list[str]


@dataclass(frozen=True)
class Family:
    """All that is known of a version; `runs` says of a run's id whether the store still has it."""

    version: Holder
    tags: Mapping[str, str]
    digest: str
    ancestry: Ancestry
    metrics: Mapping[str, float]
    parents: Sequence[Parent]
    copies: Sequence[Holder]
    runs: Mapping[str, bool]

    def run(self, run_id: str | None) -> str:
        """A run as it is told, and that it is gone."""
        if not run_id:
            return "run unknown"
        return f"run {run_id[:8]}{'' if self.runs.get(run_id) else ' (gone)'}"


def tree(family: Family) -> Node:
    """The version at the root, what it was made of first, where it went last."""
    told = [f"registered {family.version.at}", f"files {short(family.digest)}"]
    if source := family.tags.get("release.copy_of"):
        told.append(f"copied from {source}")
    below = [_adapter(family), _code(family), _scores(family), *_gate(family), *_told(family), *_exports(family)]
    below += [Node("copy", f"{copy.uri}, registered {copy.at}{_held(copy)}") for copy in family.copies]
    return Node(family.version.uri, ", ".join(told), [*below, Node("aliases now", _aliases(family))])


def _adapter(family: Family) -> Node:
    made = family.ancestry
    told = f"by {made.adapter['stage']}, seed {made.seed}, {family.run(made.adapter.get('run'))}"
    below = [_base(made), *_parents(family, list(family.parents)), *map(_teacher, made.teachers)]
    if made.generated:
        below.append(Node("generated rows", generated_digest(made.generated)))
    return Node(f"adapter {short(made.adapter['digest'])}", told, [*below, _rows(made)])


def _base(made: Ancestry) -> Node:
    base = made.base
    four_bits = "quantised to 4 bits" if base.get("quantization") else "not quantised"
    return Node(f"base {base['id']}", f"{short(str(base['revision']))}, {base['license']}, {four_bits}")


def _parents(family: Family, left: list[Parent]) -> list[Node]:
    """The adapter before, below it the one before that."""
    if not left:
        return []
    parent, *older = left
    told = [f"by {parent.stage}"] if parent.stage else []
    told += [family.run(parent.run), *([parent.version] if parent.version else ["in no registered version"])]
    return [Node(f"parent adapter {short(parent.digest)}", ", ".join(told), _parents(family, older))]


def _teacher(teacher: Mapping[str, Any]) -> Node:
    return Node(f"teacher {teacher_name(teacher)}", (teacher.get("license") or {}).get("id", "licence unknown"))


def teacher_name(teacher: Mapping[str, Any]) -> str:
    """What a teacher is called: its version, model or address, and its content where that is known."""
    name = str(teacher.get("version") or teacher.get("endpoint") or teacher.get("model") or teacher.get("kind"))
    return f"{name} ({short(str(teacher['digest']))})" if teacher.get("digest") else name


def generated_digest(generated: Any) -> str:
    """The beginning of the digest of the rows that a teacher wrote."""
    digest = generated.get("digest") if isinstance(generated, Mapping) else generated
    return short(str(digest))


def _rows(made: Ancestry) -> Node:
    return Node(f"rows {short(made.rows)}", contamination(made), [_source(one) for one in made.sources])


def contamination(made: Ancestry) -> str:
    """What the report on contamination says, in a few words."""
    found = made.contamination
    if not found.get("present"):
        return "no contamination report"
    removed, remaining = int(found.get("removed") or 0), int(found.get("remaining") or 0)
    return f"{removed:,} contaminated rows removed, {f'{remaining:,} left in' if remaining else 'clean'}"


def _source(source: Mapping[str, Any]) -> Node:
    content = f"sha256 {short(source['sha256'])}" if source.get("sha256") else f"revision {source.get('revision')}"
    known = content if source.get("sha256") or source.get("revision") else "content not known"
    return Node(str(source["name"]), f"{source['split']}, {source['place']}, {licence(source)}, {known}")


def licence(source: Mapping[str, Any]) -> str:
    """A source's licence, in words where nobody gave one."""
    return "licence unknown" if source["license"] == "unknown" else str(source["license"])


def _code(family: Family) -> Node:
    made = family.ancestry
    commit = f"commit {short(made.commit)}{' with changes' if made.dirty else ''}" if made.commit else "no git checkout"
    versions = ", ".join(f"{name} {value}" for name, value in made.libraries.items())
    return Node("code", f"{commit}, lock file {short(made.lock)}, {versions}")


def _scores(family: Family) -> Node:
    made = family.ancestry.scores
    accuracy = headline(family)
    told = [*([accuracy] if accuracy else []), f"held-out rows {short(made['heldout'])}"]
    return Node(f"scores {short(made['digest'])}", ", ".join([*told, f"{made['created']}, {family.run(made['run'])}"]))


def headline(family: Family) -> str:
    """Accuracy with its interval; empty where nothing was judged."""
    found = [family.metrics.get(f"{ACCURACY}{end}") for end in ("", "_low", "_high")]
    if found[0] is None:
        return ""
    bounds = f" [{found[1]:.1%}, {found[2]:.1%}]" if found[1] is not None and found[2] is not None else ""
    return f"accuracy {found[0]:.1%}{bounds}"


def _gate(family: Family) -> list[Node]:
    """The last decision, with every rule's line."""
    tags = family.tags
    if "gate.result" not in tags:
        return []
    rulings = [Node(value) for name, value in sorted(tags.items()) if value.startswith(("pass ", "FAIL "))]
    return [Node(f"gate {tags.get('gate.policy', '')}".strip(), tags["gate.result"], rulings)]


def _told(family: Family) -> Iterator[Node]:
    """What tags say of parity, serving and reproduction."""
    tags = family.tags
    for name, tag in (("parity", "parity.passed"), ("vLLM can serve it", "serving.vllm")):
        if tag in tags:
            yield Node(name, tags[tag])
    if "reproduced.result" in tags:
        yield Node("reproduced", f"{tags['reproduced.result']}, {tags['reproduced.at']}")


def _exports(family: Family) -> list[Node]:
    return [
        Node(f"export {name.removeprefix('export.')}", value)
        for name, value in sorted(family.tags.items())
        if name.startswith("export.")
    ]


def _aliases(family: Family) -> str:
    of_copies = [f"{copy.uri}: {', '.join(copy.aliases)}" for copy in family.copies if copy.aliases]
    return ", ".join([*family.version.aliases, *of_copies]) or "none"


def _held(copy: Holder) -> str:
    return f", {', '.join(copy.aliases)}" if copy.aliases else ""
