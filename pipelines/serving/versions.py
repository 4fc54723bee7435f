"""Versions brought to where they are served from: verified, and held to one base."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import Refused, UserError
from pipelines.serving.placed import Placed
from pipelines.tracking import registry
from pipelines.tracking.registry import Version

LOADABLE = "serving.vllm"  # the tag of a version: "true", or "false: why"


@dataclass(frozen=True)
class Brought:
    """A version whose files lie here, checked against its seal."""

    version: Version
    files: Path
    placed: Placed


def bring(version: Version, work: Path) -> Brought:
    """A verified copy of the version below `work`. Raises UserError naming the file that differs."""
    place = work / f"{version.name}-{version.number}"
    shutil.rmtree(place, ignore_errors=True)
    files = registry.copied(version, place)
    adapter, settings = registry.described(files, version.uri)
    return Brought(version, files, Placed(f"{version.name}/{version.number}", adapter, settings, version.digest))


def check_one_base(first: Brought, other: Brought) -> None:
    """Raises UserError where another version isn't on the first one's base."""
    for what, value in _base(first.placed.settings).items():
        if (got := _base(other.placed.settings)[what]) != value:
            raise UserError(
                f"{other.version.uri}: its base differs from that of {first.version.uri}, with which it would be "
                f"served: expected {what} {value}, got {got}"
            )


def _base(settings: Mapping[str, Any]) -> dict[str, Any]:
    model, adapter, compute = settings["model"], settings["adapter"], settings["compute"]
    quantization = json.dumps(adapter["quantization"], sort_keys=True)
    return {"revision": model["revision"], "quantization": quantization, "dtype": compute["dtype"]}


def check_loadable(version: Version) -> str | None:
    """Raises Refused with the reason where vLLM can't load the version; a word where that isn't recorded."""
    told = version.tags.get(LOADABLE)
    if told is None:
        return f"{version.uri}: whether vLLM can load it isn't recorded (tag {LOADABLE})"
    if told != "true":
        raise Refused(f"{version.uri} is not served by vLLM: {told.removeprefix('false: ')}")
    return None
