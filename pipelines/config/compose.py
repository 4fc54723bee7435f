"""Overrides -> one composed, validated configuration; the only file that knows Hydra."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pipelines.config.paths import CONF, resolve
from pipelines.config.schema import Config, SourceFields, SubjectFields
from pipelines.config.validate import check_unresolved, read, valid_keys, validate
from pipelines.errors import UserError
from pipelines.secrets import masked_values

BLOCK_FILES = (
    "source",
    "subject",
    "prepare",
    "sft",
    "grpo",
    "teacher",
    "generate",
    "distill",
    "verifier",
    "evaluate",
    "package",
    "promote",
    "rollback",
    "serve",
    "deploy",
    "export",
    "reproduce",
    "lineage",
    "compare",
    "plan",
    "job",
)
CHOSEN = ("adapter.peft", "distill.trainer")  # mappings whose keys depend on what is chosen
_SHORT = re.compile(r"^(\+\+|\+|~)?eval\.")
# Names of a user's own, whose fields are completed from a file of defaults.
_COMPLETED = re.compile(r"(task\.sources|evaluate\.subjects)\.[^.=]+\.(\w+)=")
_FIELDS = {"task.sources": SourceFields.model_fields, "evaluate.subjects": SubjectFields.model_fields}


@dataclass(frozen=True)
class Composed:
    """A validated configuration and the overrides that made it."""

    config: Config
    overrides: tuple[str, ...]

    def as_yaml(self) -> str:
        return as_yaml(self.config)


def as_yaml(config: Config) -> str:
    """The resolved configuration as it is stored and shown, without what looks like a secret in a text of it."""
    return yaml.safe_dump(masked_values(config.model_dump()), sort_keys=False, allow_unicode=True)


def compose(overrides: Sequence[str], conf: Path = CONF) -> Composed:
    """Composes the folder `conf` with the overrides and validates the result. Raises UserError."""
    given = tuple(overrides)
    overrides = [completed(text) for text in given]
    parsed = _parse(overrides)
    _check_given(parsed, conf)
    try:
        groups = check_defaults(conf)
        cfg = _hydra(overrides, conf)
        choices = dict(cfg.hydra.runtime.choices)
        _check_choices(groups, choices)
        origin = _origin(parsed, choices, conf)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        container = _resolved(cfg, origin)
    # A plain ValueError is how Hydra refuses a malformed `defaults` list.
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(_explain(error, parsed, conf)) from None
    return Composed(validate(container, origin), given)


def load_resolved(path: str) -> Composed:
    """The validated configuration in a file that `as_yaml` wrote. Raises UserError."""
    return Composed(read(resolve(path)), ())


def completed(text: str) -> str:
    """An override as Hydra takes it: `eval` is short for `evaluate`.

    A field of a source or a subject may be given whether its file gives it or leaves it to the file of defaults.
    """
    text = _SHORT.sub(r"\1evaluate.", text)
    found = _COMPLETED.match(text)
    return f"++{text}" if found and found[2] in _FIELDS[found[1]] else text


def _hydra(overrides: Sequence[str], conf: Path) -> Any:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)


def _check_given(overrides: Sequence[Override], conf: Path) -> None:
    """Refuses several values at once, and `group=[a,b]`, which Hydra would merge into one."""
    for override in overrides:
        key, value = override.key_or_group, None if override.is_delete() else override.value()
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: several values need --multirun; a list is written {key}=[a,b]")
        if (conf / key).is_dir() and not (isinstance(value, str) or override.is_delete()):
            raise UserError(f"{key}: expected one file of conf/{key}/, got {value!r} (in the command line)")


def _check_choices(groups: Sequence[str], choices: Mapping[str, str | None]) -> None:
    for group in groups:
        if group != "experiment" and choices.get(group) is None:
            raise UserError(f"{group}: expected one file of conf/{group}/, got none")


def _resolved(cfg: Any, origin: Callable[[str], str]) -> dict[str, Any]:
    plain = _mapping(OmegaConf.to_container(cfg, resolve=False))
    if lines := [_required(key, origin) for key in _missing(plain)]:
        raise UserError("\n".join(lines))
    try:
        return _mapping(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        # What an interpolation can't find is most likely a mistyped name, which the schema tells better.
        check_unresolved(plain, origin)
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key}: {reason} (in {origin(str(error.full_key))})") from None


def _missing(node: Any, path: str = "") -> Iterator[str]:
    """Dotted keys whose value is `???`."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{path}.{key}".lstrip("."))
    elif node == "???":
        yield path


def _mapping(container: Any) -> dict[str, Any]:
    if not isinstance(container, dict):
        raise UserError("conf/config.yaml: expected a mapping")
    return {str(key): value for key, value in container.items()}


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            override = None
        if override is None or not override.key_or_group:
            raise UserError(f"override {text!r}: expected key=value (`+key=value` adds, `~key` removes)")
        parsed.append(override)
    return parsed


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
        if _sets(conf, "experiment", choices, key):
            return f"conf/experiment/{choices['experiment']}.yaml"
        if key.startswith("grpo.") and _sets(conf, "recipe", choices, key.removeprefix("grpo.")):
            return f"conf/recipe/{choices['recipe']}.yaml"
        if key.startswith("compute.") and _sets(conf, "strategy", choices, key.removeprefix("compute.")):
            return f"conf/strategy/{choices['strategy']}.yaml"
        if _sets(conf, "distillation", choices, key):
            return f"conf/distillation/{choices['distillation']}.yaml"
        return _file(key.split(".")[0], choices)

    return origin


def _sets(conf: Path, group: str, choices: Mapping[str, str], key: str) -> bool:
    """Whether the chosen file of the group gives the key a value."""
    chosen = choices.get(group)
    if not chosen or chosen == "null":
        return False
    node = yaml.safe_load((conf / group / f"{chosen}.yaml").read_text(encoding="utf-8"))
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _file(root: str, choices: dict[str, str]) -> str:
    if root in choices:
        return f"conf/{root}/{choices[root]}.yaml"
    return f"conf/{root}.yaml" if root in BLOCK_FILES else "conf/config.yaml"


def _explain(error: Exception, overrides: list[Override], conf: Path) -> str:
    """A Hydra or OmegaConf failure in a line of ours."""
    text = str(error)
    cause = str(error.__cause__ or "")
    if found := re.search(r"Could not find '([\w./-]+)/([^'/]+)'", text):
        return _unknown_choice(found[1], found[2], overrides, conf)
    if found := re.search(r"In '([\w./-]+)': ConfigTypeError", text):
        file = f"{found[1]}.yaml"
        if line := next(_unlike(yaml.safe_load((conf / file).read_text(encoding="utf-8")), _plain(conf), ""), None):
            return f"{line} (in conf/{file})"
    # The longest key first: a block that was overridden too is named in its keys' names.
    for override in sorted(overrides, key=lambda override: -len(override.key_or_group)):
        if re.search(rf"(override|append|delete)[^']*'{re.escape(override.key_or_group)}(\.[^']*)?'", text):
            return _unknown_override(override, overrides, cause or text, conf)
    return " ".join(text.split())


def _plain(conf: Path) -> dict[str, Any]:
    """What the files of `conf` are composed to when nothing is chosen or overridden."""
    return _mapping(OmegaConf.to_container(_hydra([], conf), resolve=False))


def _unlike(node: Any, base: Any, path: str) -> Iterator[str]:
    """Where one has a list and the other a mapping: they can't be merged."""
    kinds: dict[Any, str] = {list: "a list", dict: "a mapping"}
    if isinstance(node, dict) and isinstance(base, dict):
        for key, value in node.items():
            yield from _unlike(value, base.get(key), f"{path}.{key}".lstrip("."))
    elif type(node) in kinds and type(base) in kinds and type(node) is not type(base):
        yield f"{path}: expected {kinds[type(base)]}, got {node!r}"


def _unknown_choice(group: str, choice: str, overrides: list[Override], conf: Path) -> str:
    chosen = {override.key_or_group: override.value() for override in overrides}
    # The choices of config.yaml are known to be there, so it is the experiment's if nobody gave it.
    experiment = f"conf/experiment/{chosen['experiment']}.yaml" if "experiment" in chosen else "conf/"
    where = "the command line" if group in chosen else experiment
    guess = did_you_mean(choice, [path.stem for path in (conf / group).glob("*.yaml")])
    return f"{group}: no {choice!r} in conf/{group}/{guess} (in {where})"


def _unknown_override(override: Override, overrides: list[Override], cause: str, conf: Path) -> str:
    key = override.key_or_group
    block, _, name = key.rpartition(".")
    groups = [path.name for path in conf.iterdir() if path.is_dir()]
    chosen = [o.input_line for o in overrides if o.key_or_group in groups]
    valid = valid_keys(block, _hydra(chosen, conf)) if block in CHOSEN else valid_keys(block, {})
    if name in valid and override.is_delete():
        return f"{key}: nothing to remove, it isn't set or is null (in the command line)"
    if name in valid and override.is_add():
        return f"{key}: it is in the configuration already; leave out the + (in the command line)"
    if name in valid:
        return f"{key}: not in the configuration yet; add it with +{override.input_line} (in the command line)"
    if key in groups:
        return f"{key}: {' '.join(cause.split())}"
    if not valid and (unknown := _unknown_block(key)):
        above, _, wrong = unknown.rpartition(".")
        return f"{key}: {unknown} is unknown{did_you_mean(wrong, valid_keys(above, {}))} (in the command line)"
    return f"{key}: unknown key{did_you_mean(name, [*valid, *([] if block else groups)])} (in the command line)"


def _unknown_block(key: str) -> str:
    """The first block of a dotted key that is none; empty where all are."""
    parts = key.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts)))
    for prefix in prefixes:
        above, _, name = prefix.rpartition(".")
        if (valid := valid_keys(above, {})) and name not in valid:
            return prefix
    return ""
