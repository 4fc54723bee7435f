"""Rows that are generated: the same from the same seed, wherever and whenever."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Source
from pipelines.dataset.defects import Place
from pipelines.dataset.generators import arithmetic, extraction, reasoning
from pipelines.dataset.record import Record, plain
from pipelines.errors import UserError
from pipelines.product import digest_of, file_hash

Generate = Callable[[int, int, Mapping[str, Any]], Iterator[dict[str, Any]]]
_OWN: dict[str, Any] = {"arithmetic": arithmetic, "extraction": extraction}
_LIBRARY = f"{reasoning.PACKAGE}:"
# An environment's rows: the module that makes them, and the modules that decide them, as their goals are the states
# that these leave behind.
_SHARED = ("texts", "demonstrations")
_ENVIRONMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bank": ("rows", ("bank", *_SHARED)),
    "database": ("database_rows", ("database", *_SHARED)),
    "notebook": ("notebook_rows", ("notebook", "cells", *_SHARED)),
    "shell": ("shell_rows", ("shell", *_SHARED)),
}
NAMES = (*_OWN, *_ENVIRONMENTS, f"{_LIBRARY}NAME")


def generated_records(source: Source) -> Iterator[Record]:
    """The source's rows, numbered from 1 at `<generator>@<seed>`.

    Raises UserError where there is no such generator, it isn't installed, or it refuses the settings.
    """
    name, count, seed = str(source.generate), source.count or 0, source.seed or 0
    place = f"{name}@{seed}"
    for number, fields in enumerate(_generator(name)(count, seed, source.settings), start=1):
        yield Record(Place(place, number), plain(fields))


def generated_digest(source: Source) -> str:
    """A digest over all that decides the rows. Raises UserError where there is no such generator."""
    name = str(source.generate)
    told = {"count": source.count, "seed": source.seed, "settings": source.settings}
    return digest_of({"generator": name, "version": _version(name), "told": json.dumps(told, sort_keys=True)})


def _generator(name: str) -> Generate:
    if name in _OWN:
        generate: Generate = _OWN[name].generate
        return generate
    if name in _ENVIRONMENTS:
        made: Generate = _environment(_ENVIRONMENTS[name][0]).generate
        return made
    if name.startswith(_LIBRARY):
        dataset = name.removeprefix(_LIBRARY)
        return lambda count, seed, settings: reasoning.generate(dataset, count, seed, settings)
    raise UserError(f"generate: no generator {name!r}, expected {', '.join(NAMES)}{did_you_mean(name, NAMES)}")


def _version(name: str) -> str:
    """The library's version; of a generator of ours the hash of its file."""
    if name.startswith(_LIBRARY):
        return reasoning.installed()
    _generator(name)
    if name in _OWN:
        return file_hash(Path(_OWN[name].__file__))
    rows, others = _ENVIRONMENTS[name]
    modules = (*others[:1], "environment", rows, *others[1:])
    return digest_of([file_hash(Path(str(_environment(module).__file__))) for module in modules])


def _environment(module: str) -> Any:
    """Imported when it is needed: an environment brings along what its tools need."""
    return importlib.import_module(f"pipelines.environments.{module}")
