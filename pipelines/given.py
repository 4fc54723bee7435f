"""What a version's configuration names from outside: adapters, rows and teachers, looked up by what they hold."""

from collections.abc import Sequence
from typing import Any

from pipelines import product as products
from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.errors import Refused, UserError
from pipelines.product import Product
from pipelines.rebuild import named, with_input
from pipelines.release.ancestry import Ancestry
from pipelines.release.sameness import short
from pipelines.tracking import provenance, registry

TAUGHT = {"generate", "distill"}  # the stages that ask a teacher


def looked_up(config: Config, origin: Ancestry, stages: Sequence[str]) -> tuple[Config, list[str]]:
    """The configuration with each of them where it can be had today, and what is worth telling.

    Raises Refused naming what can't be had.
    """
    notes: list[str] = []
    for stage, kind, folder in list(named(config)):
        if stage not in stages:
            continue
        if kind == "adapter":
            wanted = origin.parent if stage == origin.adapter["stage"] else None
            found, note = _adapter(folder, wanted, f"{stage}.adapter")
            config = with_input(config, stage, kind, found)
        elif there := _product(folder):
            note = f"{stage}.{kind}: taken as given, {folder} ({short(there.digest)})"
        else:
            config = with_input(config, stage, kind, None)
            note = f"{stage}.{kind}: {folder} isn't there any more, made again from the configuration"
        notes.append(note)
    if TAUGHT & set(stages) and config.teacher.kind in ("version", "adapter"):
        config, note = _teacher(config, origin)
        notes.append(note)
    return config, notes


def endpoints(config: Config, stages: Sequence[str]) -> list[str]:
    """The addresses of the teachers that are asked again."""
    asked = TAUGHT & set(stages) and config.teacher.kind == "endpoint"
    return [str(config.teacher.at)] if asked else []


def _adapter(folder: str, wanted: str | None, field: str) -> tuple[str, str]:
    """Where the adapter of that digest lies: in its folder of then, or in a registered version."""
    there = _product(folder)
    if there is not None and wanted in (None, there.digest):
        return folder, f"{field}: {folder} ({short(there.digest)})"
    version = provenance.with_tag("adapter.digest", wanted) if wanted else None
    if version is None:
        known = "is another now" if there else "isn't there"
        raise Refused(f"{field}: {folder} {known}, and no registered version holds adapter {short(wanted)}")
    found, _ = registry.contents(version)
    return str(found), f"{field}: {folder} isn't that adapter any more; {short(wanted)} is taken from {version.uri}"


def _teacher(config: Config, origin: Ancestry) -> tuple[Config, str]:
    kind = str(config.teacher.kind)
    teacher = next((one for one in origin.teachers if one.get("kind") == kind), None)
    if teacher is None:
        raise UserError(f"teacher: the version's lineage names no teacher of kind {kind}")
    if kind == "adapter":
        at, note = _adapter(str(config.teacher.at), str(teacher["digest"]), "teacher.at")
    else:
        version = _version(teacher)
        at, note = version, f"teacher.at: {config.teacher.at} was {teacher['version']} then; {version} is asked"
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"at": at})}), note


def _version(teacher: dict[str, Any]) -> str:
    """The registered version that taught, by number or, where that is gone, by its adapter."""
    uri, field = str(teacher["version"]), "teacher.at"
    if registry.is_there(uri, field) and registry.find(uri, field).tags.get("model.digest") == teacher.get("digest"):
        return uri
    found = provenance.with_tag("adapter.digest", str(teacher.get("adapter")))
    if found is None:
        raise Refused(f"{field}: {uri} isn't in this registry any more, nor is another version of its adapter")
    return found.uri


def _product(folder: str) -> Product | None:
    try:
        return products.load(resolve(folder))
    except UserError:
        return None
