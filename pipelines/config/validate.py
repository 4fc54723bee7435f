"""The composed mapping, checked: a `Config`, or one readable line for each mistake."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from pipelines import secrets
from pipelines.config import literal, upstream
from pipelines.config.block import Block
from pipelines.config.nearest import did_you_mean, nearest
from pipelines.config.schema import Config, SourceFields, SubjectFields
from pipelines.config.strategy import mismatch
from pipelines.errors import UserError

Origin = Callable[[str], str]

PEFT_CLASSES = {
    "lora": "LoraConfig",
    "ia3": "IA3Config",
    "prefix_tuning": "PrefixTuningConfig",
    "p_tuning": "PromptEncoderConfig",
}

TRAINERS = {"sft.trainer": "SFTConfig", "grpo.trainer": "GRPOConfig", "distill.trainer": "DistillationConfig"}
OF_METHOD = {"sequence": "SFTConfig", "stored_logits": "SFTConfig", "cross_tokenizer": "GOLDConfig"}

# Settings that another field of ours decides: two homes for one value would disagree one day.
_TRAINER = {
    "output_dir": "paths.adapters",
    "seed": "seed",
    "data_seed": "seed",
    "use_cpu": "compute.device",
    "bf16": "compute.dtype",
    "fp16": "compute.dtype",
    "report_to": "tracking",
    "disable_tqdm": "the terminal",
    "resume_from_checkpoint": "resume",
    "trust_remote_code": "model.remote_code",
    "model_init_kwargs": "model and compute",
    "push_to_hub": "the registry",
    "hub_model_id": "the registry",
    "deepspeed": "strategy",
    "fsdp": "strategy",
    "fsdp_config": "compute.fsdp",
    "ddp_timeout": "compute.rendezvous.timeout_s",
    "ddp_backend": "compute.device",
}
OWNED: dict[str, dict[str, str]] = {
    "sft.trainer": _TRAINER | {"completion_only_loss": "sft.loss", "assistant_only_loss": "sft.loss"},
    "grpo.trainer": _TRAINER
    | {
        "reward_weights": "grpo.rewards",
        "log_completions": "grpo.show",
        "log_completions_hub_repo": "grpo.show",
        "chat_template_kwargs": "model.chat.thinking",
        "max_tool_calling_iterations": "task.max_turns",
        "eval_strategy": "the stage evaluate",
        "do_eval": "the stage evaluate",
    },
    "distill.trainer": _TRAINER
    | {
        "teacher_model_name_or_path": "teacher.at",
        "teacher_model_revision": "teacher.at",
        "teacher_model_init_kwargs": "teacher",
        "teacher_tokenizer_name_or_path": "teacher.at",
        "log_completions": "never",
        "chat_template_kwargs": "model.chat.thinking",
        "max_tool_calling_iterations": "task.max_turns",
        "completion_only_loss": "distill.method",
        "assistant_only_loss": "distill.method",
        "eval_strategy": "the stage evaluate",
        "do_eval": "the stage evaluate",
    },
    "adapter.peft": {
        "task_type": "always CAUSAL_LM",
        "peft_type": "adapter.method",
        "inference_mode": "the stage",
        "base_model_name_or_path": "model.id",
        "revision": "model.revision",
        "loftq_config": "adapter.quantization",
        "target_parameters": "adapter.train_experts, train_shared_experts and train_router",
    },
}

EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
    "string_too_short": "text that is not empty",
    "finite_number": "a finite number",
}


def read(path: Path) -> Config:
    """The validated configuration in a file that was composed before, such as a run's config.yaml. Raises UserError."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a mapping, such as a run's config.yaml or what --cfg job prints")
    return validate(found, lambda key: str(path))


def validate(container: Mapping[str, Any], origin: Origin) -> Config:
    """The mapping as a `Config`.

    `origin` tells where a dotted key was set (a file of `conf/` or the command line).
    Raises UserError with one line for each mistake.
    """
    literal.check(container, origin)
    secrets.watch(container)
    config = check_schema(container, origin)
    given = {path: getattr(config, path.partition(".")[0]).trainer for path in TRAINERS}
    problems = [
        line for path, values in given.items() for line in _block(path, trainer_class(path, container), values, origin)
    ]
    problems += _block("adapter.peft", PEFT_CLASSES[config.adapter.method], config.adapter.peft, origin)
    # The rules between fields rely on each having its type.
    if problems := problems or [*_cross_checks(config, origin)]:
        raise UserError("\n".join(problems))
    return config


def check_schema(container: Mapping[str, Any], origin: Origin) -> Config:
    """The mapping as a `Config`, its settings for trl and peft unread. Raises UserError like `validate`."""
    try:
        _DefaultFiles.model_validate({name: container.get(name, {}) for name in _DefaultFiles.model_fields})
        return Config.model_validate(_complete(container))
    except ValidationError as error:
        # A setting of the trainer that another field refers to is wrong there, and told there first.
        raise UserError("\n".join([*_trainer_lines(container, origin), *_lines(error, origin)])) from None


def check_unresolved(container: Mapping[str, Any], origin: Origin) -> None:
    """Raises UserError for what is wrong beside the references, such as `${model.learning_rate}`, that lead nowhere."""
    try:
        Config.model_validate(_complete(container))
    except ValidationError as error:
        items = [i for i in error.errors() if i["type"] == "extra_forbidden" or not _is_reference(i["input"])]
        problems = [*_lines_of(items, origin), *_trainer_lines(container, origin)]
        if problems:
            raise UserError("\n".join(problems)) from None


def _trainer_lines(container: Mapping[str, Any], origin: Origin) -> Iterator[str]:
    for path in TRAINERS:
        block = container.get(path.split(".")[0])
        trainer = block.get("trainer") if isinstance(block, Mapping) else None
        if isinstance(trainer, Mapping):
            values = {name: value for name, value in trainer.items() if not _is_reference(value)}
            yield from _block(path, trainer_class(path, container), values, origin)


def trainer_class(path: str, container: Mapping[str, Any]) -> str:
    """Whose settings the mapping at `path` holds: for distill.trainer, the method's."""
    block = container.get(path.split(".")[0])
    method = block.get("method") if path == "distill.trainer" and isinstance(block, Mapping) else None
    return OF_METHOD.get(str(method), TRAINERS[path])


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and value.startswith("${")


class _DefaultFiles(Block):
    """What every source and every subject is by default; a mistake in it is told once, not for each of them."""

    source: SourceFields
    subject: SubjectFields


def _complete(container: Mapping[str, Any]) -> dict[str, Any]:
    """Each source of the task over the values of `conf/source.yaml`, each subject over those of `conf/subject.yaml`."""
    found = _over(container, "task", "sources", "source")
    return _over(found, "evaluate", "subjects", "subject")


def _over(container: Mapping[str, Any], block: str, field: str, defaults: str) -> dict[str, Any]:
    held = container.get(block)
    named = held.get(field) if isinstance(held, Mapping) else None
    base = container.get(defaults)
    if not isinstance(held, Mapping) or not isinstance(named, Mapping) or not isinstance(base, Mapping):
        return dict(container)
    merged = {n: {**base, **given} if isinstance(given, Mapping) else given for n, given in named.items()}
    return {**container, block: {**held, field: merged}}


def valid_keys(block: str, config: Mapping[str, Any]) -> list[str]:
    """Names that may stand under a dotted path, for suggestions; empty where anything may."""
    if block in TRAINERS:
        return _free(block, trainer_class(block, config))
    if block == "adapter.peft":
        method = config.get("adapter", {}).get("method", "lora")
        return _free("adapter.peft", PEFT_CLASSES.get(method, "LoraConfig"))
    kind = _kind_at(block.split(".") if block else [])
    if is_typeddict(kind):
        return list(kind.__annotations__)
    return list(kind.model_fields) if _is_block(kind) else []


def _free(block: str, cls: str) -> list[str]:
    return [name for name in upstream.fields(cls) if name not in OWNED[block]]


def _kind_at(parts: list[str]) -> Any:
    kind: Any = Config
    for part in parts:
        if is_typeddict(kind):
            kind = kind.__annotations__.get(part)
        elif _is_block(kind):
            field = kind.model_fields.get(part)
            kind = field.annotation if field else None
        else:  # a key of a mapping from names to blocks
            kind = get_args(kind)[-1] if get_args(kind) else None
        if get_origin(kind) is not dict:  # a block or null
            kind = next((a for a in get_args(kind) if is_typeddict(a) or _is_block(a)), kind)
    return kind


def _is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _lines(error: ValidationError, origin: Origin) -> Iterator[str]:
    """One line a mistake; a name that is missing because it was mistyped is told once."""
    yield from _lines_of(error.errors(), origin)


def _lines_of(items: Sequence[ErrorDetails], origin: Origin) -> Iterator[str]:
    mistakes: dict[str, list[ErrorDetails]] = {}
    guesses = set()
    # Unknown names first: they explain what is missing.
    for item in sorted(items, key=lambda item: item["type"] != "extra_forbidden"):
        mistakes.setdefault(_dotted(item["loc"]), []).append(item)
        if item["type"] == "extra_forbidden":
            block, name = _split(item["loc"])
            guesses.add(f"{block}.{nearest(name, valid_keys(block, {}))}".lstrip("."))
    for path, found in mistakes.items():
        if found[0]["type"] != "missing" or path not in guesses:
            # A rule between blocks names the field itself.
            line = f"{path}: {_union_reason(found)}".removeprefix(": ")
            yield f"{line} (in {origin(path or line.partition(':')[0])})"


def _dotted(loc: tuple[int | str, ...]) -> str:
    # pydantic adds the tried member of a union to the location; names of ours hold no brackets.
    return ".".join(str(part) for part in loc if "[" not in str(part) and str(part) not in _UNION_TAGS)


_UNION_TAGS = {"str", "int", "float", "bool", "constrained-str", "constrained-int", "constrained-float"}


def _split(loc: tuple[int | str, ...]) -> tuple[str, str]:
    return _dotted(loc[:-1]), str(loc[-1])


def _reason(item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden":
        block, name = _split(item["loc"])
        return f"unknown key{did_you_mean(name, valid_keys(block, {}))}"
    if item["type"] == "missing":
        return "missing; a value is required"
    if item["type"] == "literal_error":
        return _choice(item)
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    return f"expected {_expected(item)}, got {_shown(item)}"


def _shown(item: ErrorDetails) -> str:
    """What was given; a key that was written down where its name belongs goes into no log."""
    secret = item["loc"] and item["loc"][-1] == "api_key" and isinstance(item["input"], str)
    return "***" if secret else repr(item["input"])


def _choice(item: ErrorDetails) -> str:
    choices = str(item["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
    shown = ", ".join(choices) if len(choices) <= 12 else f"one of {len(choices)} names"
    return f"expected {shown}, got {item['input']!r}{did_you_mean(str(item['input']), choices)}"


def _expected(item: ErrorDetails) -> str:
    if item["type"] == "string_pattern_mismatch":
        return f"text of the form {item['ctx']['pattern']}"
    if item["type"] == "too_short":
        return f"{item['ctx']['min_length']} or more entries"
    return EXPECTED.get(item["type"]) or item["msg"].removeprefix("Input should be ").lower()


def _block(path: str, cls: str, values: Mapping[str, Any], origin: Origin) -> Iterator[str]:
    """Mistakes in a block that goes to an upstream class."""
    valid = _free(path, cls)
    for name, value in values.items():
        key = f"{path}.{name}"
        if name in OWNED[path]:
            yield f"{key}: decided by {OWNED[path][name]}, not here (in {origin(key)})"
        elif name not in valid:
            yield f"{key}: unknown key of {cls}{did_you_mean(name, valid)} (in {origin(key)})"
        else:
            try:
                upstream.check(cls, name, value)
            except ValidationError as error:
                yield f"{key}: {_union_reason(error.errors())} (in {origin(key)})"


def _union_reason(details: list[ErrorDetails]) -> str:
    """What any member of a union would have taken, on one line."""
    if len(details) == 1:
        return _reason(details[0])
    wanted = list(dict.fromkeys(_expected(item) for item in details))
    return f"expected {' or '.join(wanted)}, got {_shown(details[0])}"


# A recipe or a method lies over the trainer's settings, whatever these are: a key that only they have tells.
_BENEATH = {"grpo": "num_generations", "distill": "optim"}


def _hidden(config: Config, origin: Origin) -> Iterator[str]:
    """Settings of a trainer that are no mapping, hidden below those of a recipe."""
    for block, key in _BENEATH.items():
        trainer = getattr(config, block).trainer
        if key not in trainer:
            place = origin(f"{block}.trainer.{key}")
            yield f"{block}.trainer: expected a mapping with {key}, got {', '.join(trainer)} (in {place})"


def _cross_checks(config: Config, origin: Origin) -> Iterator[str]:
    """Rules between fields of different blocks."""
    trainer = config.sft.trainer
    if (trainer.get("max_length") or 0) > config.model.context_length:
        yield (
            f"sft.trainer.max_length: {trainer['max_length']} is over the {config.model.context_length} tokens of "
            f"{config.model.name}'s context (in {origin('sft.trainer.max_length')})"
        )
    yield from _hidden(config, origin)
    compute = config.compute
    if why := mismatch(compute.strategy, compute.deepspeed, compute.fsdp):
        yield f"{why}; choose it with strategy=FILE of conf/strategy/ (in {origin('compute.strategy')})"
    if (config.grpo.trainer.get("max_completion_length") or 0) >= config.model.context_length:
        yield (
            f"grpo.trainer.max_completion_length: {config.grpo.trainer['max_completion_length']} leaves no room for a "
            f"prompt in the {config.model.context_length} tokens of {config.model.name}'s context "
            f"(in {origin('grpo.trainer.max_completion_length')})"
        )
    if config.sft.early_stopping_patience is not None and not trainer.get("load_best_model_at_end"):
        yield (
            "sft.early_stopping_patience: needs sft.trainer.load_best_model_at_end=true, or null "
            f"(in {origin('sft.early_stopping_patience')})"
        )
    if config.compute.device == "cpu" and config.compute.attn_implementation.startswith("flash"):
        yield (
            f"compute.attn_implementation: {config.compute.attn_implementation} runs on CUDA only; "
            f"expected sdpa or eager on cpu (in {origin('compute.attn_implementation')})"
        )
