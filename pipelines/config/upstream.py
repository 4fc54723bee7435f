"""Names and types of the settings that go to trl and peft as they stand.

The classes are read from the installed sources with `ast`, not imported: importing trl takes ten seconds,
and a mistyped key should be answered in one. So nothing is declared twice, and what is accepted is what the
installed version accepts.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, StringConstraints, TypeAdapter

# The files that hold each class with its bases, relative to the installed package.
SOURCES: dict[str, tuple[str, ...]] = {
    "SFTConfig": ("trl/trainer/sft_config.py", "trl/trainer/base_config.py", "transformers/training_args.py"),
    "GRPOConfig": ("trl/trainer/grpo_config.py", "trl/trainer/base_config.py", "transformers/training_args.py"),
    "DistillationConfig": (
        "trl/trainer/distillation_config.py",
        "trl/trainer/base_config.py",
        "transformers/training_args.py",
    ),
    "GOLDConfig": (
        "trl/experimental/gold/gold_config.py",
        "trl/trainer/sft_config.py",
        "trl/trainer/base_config.py",
        "transformers/training_args.py",
    ),
    "LoraConfig": ("peft/tuners/lora/config.py", "peft/config.py"),
    "IA3Config": ("peft/tuners/ia3/config.py", "peft/config.py"),
    "PrefixTuningConfig": ("peft/tuners/prefix_tuning/config.py", "peft/config.py"),
    "PromptEncoderConfig": ("peft/tuners/p_tuning/config.py", "peft/config.py"),
}
ENUMS = ("transformers/trainer_utils.py", "transformers/training_args.py", "peft/tuners/p_tuning/config.py")
# `LoraConfig.init_lora_weights` writes a pattern as a literal.
NITER, NITER_PATTERN = "pissa_niter_[number of iters]", r"^pissa_niter_\d+$"

# Upstream states ranges in prose only. A name stands for every class, or behind one for that class alone.
RANGES: dict[str, tuple[Any, ...]] = {
    "learning_rate": (Gt(0), Lt(1)),
    "num_train_epochs": (Gt(0),),
    "max_steps": (Ge(-1),),
    "weight_decay": (Ge(0),),
    "max_grad_norm": (Ge(0),),
    "warmup_steps": (Ge(0),),
    "per_device_train_batch_size": (Ge(1),),
    "per_device_eval_batch_size": (Ge(1),),
    "gradient_accumulation_steps": (Ge(1),),
    "max_length": (Ge(1),),
    "logging_steps": (Gt(0),),
    "eval_steps": (Gt(0),),
    "save_steps": (Gt(0),),
    "save_total_limit": (Ge(1),),
    "GRPOConfig.num_generations": (Ge(2),),
    "max_completion_length": (Ge(1),),
    "temperature": (Gt(0),),
    "beta": (Ge(0),),
    "lmbda": (Ge(0), Le(1)),
    "epsilon": (Gt(0),),
    "epsilon_high": (Gt(0),),
    "num_iterations": (Ge(1),),
    "r": (Ge(1),),
    "lora_alpha": (Gt(0),),
    "lora_dropout": (Ge(0), Lt(1)),
    "num_virtual_tokens": (Ge(1),),
    "encoder_hidden_size": (Ge(1),),
}


# What GRPOConfig takes as any text, and the trainer refuses at its first step.
CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("colocate", "server"),
}


def fields(cls: str) -> dict[str, Any]:
    """Field name -> type of an upstream settings class."""
    return dict(_fields(cls))


def check(cls: str, name: str, value: object) -> None:
    """Raises pydantic's ValidationError where `value` isn't of the field's type or range."""
    annotated = fields(cls)[name]
    bounds = RANGES.get(f"{cls}.{name}", RANGES.get(name, ()))
    for bound in bounds if value is not None else ():
        annotated = Annotated[annotated, bound]
    TypeAdapter(annotated, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)


@cache
def _fields(cls: str) -> Mapping[str, Any]:
    names = _Names(_enums())
    classes = {node.name: node for node in _classes(SOURCES[cls])}
    found: dict[str, Any] = {}
    for node in _lineage(cls, classes):
        for item in _annotated(node):
            name = ast.unparse(item.target)
            choices = _choices(item) or CHOICES.get(name, ())
            found.setdefault(name, _restrict(_evaluate(item.annotation, names), choices))
    return found


def _lineage(cls: str, classes: Mapping[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    if node := classes.get(cls):
        yield node
        for base in node.bases:
            yield from _lineage(ast.unparse(base), classes)


def _classes(files: tuple[str, ...]) -> Iterator[ast.ClassDef]:
    for file in files:
        yield from (node for node in _parse(file).body if isinstance(node, ast.ClassDef))


def _parse(file: str) -> ast.Module:
    # Not kept: a tree takes megabytes, and what is read from it a few hundred bytes.
    package, _, rest = file.partition("/")
    spec = PathFinder.find_spec(package, sys.path)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed")
    return ast.parse((Path(spec.submodule_search_locations[0]) / rest).read_text(encoding="utf-8"))


def _annotated(node: ast.ClassDef) -> Iterator[ast.AnnAssign]:
    """The fields that may be given: not `field(init=False)`."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and "init=False" not in ast.unparse(item):
            yield item


def _choices(item: ast.AnnAssign) -> tuple[str, ...]:
    """The texts that a field's metadata lists as its choices; empty where it lists none."""
    for node in ast.walk(item):
        if isinstance(node, ast.Dict):
            found = {ast.unparse(key): value for key, value in zip(node.keys, node.values, strict=True) if key}
            if isinstance(listed := found.get("'choices'"), ast.List):
                return tuple(ast.literal_eval(listed))
    return ()


@cache
def _enums() -> Mapping[str, tuple[str, ...]]:
    found = {}
    for node in _classes(ENUMS):
        values = [s.value.value for s in node.body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant)]
        if any(ast.unparse(base) in ("ExplicitEnum", "enum.Enum") for base in node.bases):
            found[node.name] = tuple(str(v) for v in values)
    return found


class _Names(dict[str, Any]):
    """What the names in an annotation mean; a class that YAML can't hold reads as text."""

    def __init__(self, enums: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(Literal=Literal, Any=Any, Optional=Optional, Union=Union, None_=None)
        self.update({kind.__name__: kind for kind in (str, int, float, bool, list, dict, tuple, set)})
        self.update({name: Literal[values] for name, values in enums.items()})

    def __missing__(self, name: str) -> Any:
        return str


def _evaluate(annotation: ast.expr, names: _Names) -> Any:
    text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    kind = eval(str(text), {"__builtins__": {}}, names)
    members = get_args(kind) if get_origin(kind) is not Literal else ()
    # `SchedulerType | str` would accept any text; the enumeration is what the field really takes.
    if str in members and any(get_origin(member) is Literal for member in members):
        members = tuple(member for member in members if member is not str)
    return Union[tuple(_literal(member) for member in members)] if members else kind  # noqa: UP007


def _literal(kind: Any) -> Any:
    if get_origin(kind) is not Literal or NITER not in get_args(kind):
        return kind
    names = tuple(name for name in get_args(kind) if name != NITER)
    return Literal[names] | Annotated[str, StringConstraints(pattern=NITER_PATTERN)]


def _restrict(kind: Any, choices: tuple[str, ...]) -> Any:
    """A type with its text, if it has any, narrowed to the choices."""
    if not choices:
        return kind
    members = get_args(kind) or (kind,)
    return Union[tuple(Literal[choices] if member is str else member for member in members)]  # noqa: UP007
