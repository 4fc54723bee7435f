"""Overrides -> one composed, validated configuration; the only file that knows Hydra."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.config.defaults import check_defaults
from pipelines.config.nearest import did_you_mean
from pipelines.config.paths import CONF
from pipelines.config.schema import Config
from pipelines.config.validate import valid_keys, validate
from pipelines.errors import UserError

STAGE_FILES = ("prepare", "sft", "evaluate", "package", "promote")


@dataclass(frozen=True)
class Composed:
    """A validated configuration and the overrides that made it."""

    config: Config
    overrides: tuple[str, ...]

    def as_yaml(self) -> str:
        return as_yaml(self.config)


def as_yaml(config: Config) -> str:
    """The resolved configuration as it is stored and shown."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def compose(overrides: Sequence[str], conf: Path = CONF) -> Composed:
    """Composes the folder `conf` with the overrides and validates the result. Raises UserError."""
    parsed = _parse(overrides)
    try:
        check_defaults(conf)
        cfg = _hydra(overrides, conf)
        choices = dict(cfg.hydra.runtime.choices)
        origin = _origin(parsed, choices, conf)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        _refuse_missing(cfg, origin)
        container = _resolved(cfg, origin)
    # A plain ValueError is how Hydra refuses a malformed `defaults` list.
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(_explain(error, parsed, conf)) from None
    return Composed(validate(container, origin), tuple(overrides))


def _hydra(overrides: Sequence[str], conf: Path) -> Any:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)


def _resolved(cfg: Any, origin: Callable[[str], str]) -> dict[str, Any]:
    try:
        return _mapping(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        # What an interpolation can't find is most likely a mistyped name, which the schema tells better.
        validate(_mapping(OmegaConf.to_container(cfg, resolve=False)), origin)
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key}: {reason} (in {origin(str(error.full_key))})") from None


def _mapping(container: Any) -> dict[str, Any]:
    if not isinstance(container, dict):
        raise UserError("conf/config.yaml: expected a mapping")
    return {str(key): value for key, value in container.items()}


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            raise UserError(f"override {text!r}: expected key=value (`+key=value` adds, `~key` removes)") from None
    return parsed


def _refuse_missing(cfg: Any, origin: Callable[[str], str]) -> None:
    lines = [_required(key, origin) for key in sorted(OmegaConf.missing_keys(cfg))]
    if lines:
        raise UserError("\n".join(lines))


def _required(key: str, origin: Callable[[str], str]) -> str:
    block, _, name = key.rpartition(".")
    valid = valid_keys(block, {})
    if name in valid:
        return f"{key}: required, set it with {key}=... (in {origin(key)})"
    return f"{key}: unknown key{did_you_mean(name, valid)} (in {origin(key)})"


def _origin(overrides: list[Override], choices: dict[str, str], conf: Path) -> Callable[[str], str]:
    """Where a dotted key got its value: the command line, an experiment, or a file of `conf/`."""
    given = [o.key_or_group for o in overrides if "/" not in o.key_or_group and o.key_or_group not in choices]

    def origin(key: str) -> str:
        if any(key == g or key.startswith(f"{g}.") or g.startswith(f"{key}.") for g in given):
            return "the command line"
        experiment = choices.get("experiment")
        if experiment and experiment != "null" and _sets(conf / "experiment" / f"{experiment}.yaml", key):
            return f"conf/experiment/{experiment}.yaml"
        return _file(key.split(".")[0], choices)

    return origin


def _sets(file: Path, key: str) -> bool:
    node = yaml.safe_load(file.read_text(encoding="utf-8"))
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _file(root: str, choices: dict[str, str]) -> str:
    if root in choices:
        return f"conf/{root}/{choices[root]}.yaml"
    return f"conf/{root}.yaml" if root in STAGE_FILES else "conf/config.yaml"


def _explain(error: Exception, overrides: list[Override], conf: Path) -> str:
    """A Hydra or OmegaConf failure in a line of ours."""
    text = str(error)
    cause = str(error.__cause__ or "")
    if group := re.search(r"Could not find '([\w./-]+)/([^'/]+)'", text):
        available = [path.stem for path in (conf / group[1]).glob("*.yaml")]
        return f"{group[1]}: no {group[2]!r} in conf/{group[1]}/{did_you_mean(group[2], available)}"
    for override in overrides:
        key = override.key_or_group
        if key and re.search(rf"(override|append|delete)[^']*'{re.escape(key)}(\.[^']*)?'", text):
            return _unknown_override(override, overrides, cause or text, conf)
    return " ".join(text.split())


def _unknown_override(override: Override, overrides: list[Override], cause: str, conf: Path) -> str:
    key = override.key_or_group
    block, _, name = key.rpartition(".")
    groups = [path.name for path in conf.iterdir() if path.is_dir()]
    chosen = [o.input_line for o in overrides if o.key_or_group in groups]
    valid = valid_keys(block, _hydra(chosen, conf)) if block == "adapter.peft" else valid_keys(block, {})
    if name in valid:
        return f"{key}: not in the configuration yet; add it with +{override.input_line} (in the command line)"
    if key in groups:
        return f"{key}: {' '.join(cause.split())}"
    return f"{key}: unknown key{did_you_mean(name, [*valid, *([] if block else groups)])} (in the command line)"
