"""Overrides -> one composed, validated configuration; the only file that knows Hydra."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

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


def compose(overrides: Sequence[str]) -> Composed:
    """Composes `conf/` with the overrides and validates the result. Raises UserError."""
    parsed = _parse(overrides)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        choices = dict(cfg.hydra.runtime.choices)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        _refuse_missing(cfg, choices)
        container = OmegaConf.to_container(cfg, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(_explain(error, parsed)) from None
    config = validate(_mapping(container), _origin(parsed, choices))
    return Composed(config, tuple(overrides))


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


def _refuse_missing(cfg: Any, choices: dict[str, str]) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        origin = _origin([], choices)
        lines = [f"{key}: required, set it with {key}=... (in {origin(key)})" for key in missing]
        raise UserError("\n".join(lines))


def _origin(overrides: list[Override], choices: dict[str, str]) -> Callable[[str], str]:
    """Where a dotted key got its value: the command line, an experiment, or a file of `conf/`."""
    given = [o.key_or_group for o in overrides if "/" not in o.key_or_group and o.key_or_group not in choices]

    def origin(key: str) -> str:
        if any(key == g or key.startswith(f"{g}.") or g.startswith(f"{key}.") for g in given):
            return "the command line"
        experiment = choices.get("experiment")
        if experiment and experiment != "null" and _sets(experiment, key):
            return f"conf/experiment/{experiment}.yaml"
        return _file(key.split(".")[0], choices)

    return origin


def _sets(experiment: str, key: str) -> bool:
    node = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _file(root: str, choices: dict[str, str]) -> str:
    if root in choices:
        return f"conf/{root}/{choices[root]}.yaml"
    return f"conf/{root}.yaml" if root in STAGE_FILES else "conf/config.yaml"


def _explain(error: Exception, overrides: list[Override]) -> str:
    """A Hydra or OmegaConf failure in a line of ours."""
    text = str(error)
    cause = str(error.__cause__ or "")
    if group := re.search(r"Could not find '([\w./-]+)/([^'/]+)'", text):
        available = re.findall(r"^\s+([\w.-]+)$", text, flags=re.MULTILINE) or _options(group[1])
        return f"{group[1]}: no {group[2]!r} in conf/{group[1]}/{did_you_mean(group[2], available)}"
    for override in overrides:
        key = override.key_or_group
        if key and re.search(rf"(override|append|delete)[^']*'{re.escape(key)}(\.[^']*)?'", text):
            return _unknown_override(override, cause or text)
    return " ".join(text.split())


def _options(group: str) -> list[str]:
    return [path.stem for path in (CONF / group).glob("*.yaml")]


def _unknown_override(override: Override, cause: str) -> str:
    key = override.key_or_group
    block, _, name = key.rpartition(".")
    valid = valid_keys(block, {})
    if name in valid:
        return f"{key}: not in the configuration yet; add it with +{override.input_line} (in the command line)"
    if "." not in key and (CONF / key).is_dir():
        return f"{key}: {' '.join(cause.split())}"
    groups = [] if block else [path.name for path in CONF.iterdir() if path.is_dir()]
    return f"{key}: unknown key{did_you_mean(name, [*valid, *groups])} (in the command line)"
