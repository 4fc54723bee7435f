"""The `defaults` list of `conf/config.yaml`, checked before Hydra reads it.

Hydra passes over a mistyped group whose choice is null, and ends on an entry of a wrong type in a traceback.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Config
from pipelines.errors import UserError

WHERE = "(in conf/config.yaml)"


def check_defaults(conf: Path) -> list[str]:
    """The groups of the list. Raises UserError with one line for each entry that names no file of `conf`."""
    content = yaml.safe_load((conf / "config.yaml").read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"expected a mapping {WHERE}")
    entries = content.get("defaults", [])
    if not isinstance(entries, list):
        raise UserError(f"defaults: expected a list, got {entries!r} {WHERE}")
    problems = [*_mistyped(content), *(line for entry in entries for line in _problems(entry, conf))]
    if problems:
        raise UserError("\n".join(problems))
    return [group for entry in entries if isinstance(entry, dict) for group in entry]


def _mistyped(content: dict[str, Any]) -> Iterator[str]:
    """Without the list every block is missing, which would hide the one key that is wrong."""
    if "defaults" in content:
        return
    unknown = [str(key) for key in content if key not in Config.model_fields]
    for key in unknown:
        yield f"{key}: unknown key{did_you_mean(key, ['defaults', *Config.model_fields])} {WHERE}"
    if not unknown:
        yield f"defaults: missing; a list is required {WHERE}"


def _problems(entry: object, conf: Path) -> Iterator[str]:
    if isinstance(entry, str):
        files = ["_self_", *_stems(conf)]
        if entry not in files:
            yield f"defaults.{entry}: unknown key{did_you_mean(entry, files)} {WHERE}"
    elif isinstance(entry, dict) and len(entry) == 1:
        yield from _choice(*next(iter(entry.items())), conf)
    else:
        yield f"defaults: expected a file's name or one group with its choice, got {entry!r} {WHERE}"


def _choice(group: object, choice: object, conf: Path) -> Iterator[str]:
    groups = [path.name for path in conf.iterdir() if path.is_dir()]
    if group not in groups:
        yield f"defaults.{group}: unknown key{did_you_mean(str(group), groups)} {WHERE}"
        return
    files = _stems(conf / str(group))
    if choice not in (*files, None, "???"):
        guess = did_you_mean(choice, files) if isinstance(choice, str) else ""
        yield f"defaults.{group}: expected a file of conf/{group}/, got {choice!r}{guess} {WHERE}"


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "config")
