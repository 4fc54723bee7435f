"""TRL's experimental AsyncGRPOTrainer over rows: a vLLM server answers while training goes on. A new adapter only."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from transformers import AutoConfig
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

from pipelines.config import schema
from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.errors import Unreachable, UserError
from pipelines.policy import adapter as adapters
from pipelines.policy.base import source, template_switches
from pipelines.policy.fit import Course, Fitted, Log, fit, trainer_settings
from pipelines.policy.geometry import rows_of_step
from pipelines.policy.optimizer import attach
from pipelines.progress import say
from pipelines.rewards.recorder import Sink
from pipelines.rewards.spawned import SpawnedReward
from pipelines.rewards.watch import Watch, metrics_of, stop_for

# Keys of trl.GRPOConfig that this trainer lacks, with the one value that says what it does anyway. Its loss is summed
# over the tokens of a micro-batch and divided by their number, which TRL calls bnpo.
NEUTRAL: dict[str, Any] = {
    "loss_type": "bnpo",
    "scale_rewards": "group",
    "importance_sampling_level": "token",
    "mask_truncated_completions": False,
    "beta": 0.0,
    "num_iterations": 1,
    "use_vllm": True,
    "vllm_mode": "server",
    "shuffle_dataset": False,
}
ELSEWHERE = {"dtype": "compute.dtype decides", "use_liger_kernel": "the trainer has no such kernel"}
UNWATCHED = ("audit_gap", "zero_variance", "kl")  # alarms that nothing in this trainer's logs belongs to


def settings_of(config: Config, work: Path) -> AsyncGRPOConfig:
    """`AsyncGRPOConfig` from `grpo.trainer`. Raises UserError for keys that would be without effect."""
    known = {field.name for field in dataclasses.fields(AsyncGRPOConfig) if field.init} - ELSEWHERE.keys()
    # Without it micro-batches are filled up to a number of tokens, whatever per_device_train_batch_size says.
    kept: dict[str, Any] = {"token_budget": 0}
    problems = []
    for key, value in config.grpo.trainer.items():
        if key in known:
            kept[key] = value
        elif key not in NEUTRAL or value != NEUTRAL[key]:
            problems.append(f"grpo.trainer.{key}: {_why_not(key, value, known)}")
    if problems:
        raise UserError("\n".join(problems))
    named = config.model_copy(update={"grpo": config.grpo.model_copy(update={"trainer": kept})})
    settings: AsyncGRPOConfig = trainer_settings(AsyncGRPOConfig, "grpo.trainer", named, work)
    return settings


def _why_not(key: str, value: Any, known: set[str]) -> str:
    if key in ELSEWHERE:
        return f"is not for grpo.asynchronous: {ELSEWHERE[key]}"
    if key in NEUTRAL:
        return (
            f"expected {NEUTRAL[key]!r}, which is all that the trainer of grpo.asynchronous does, got {value!r}; "
            "recipe=asynchronous sets what fits it"
        )
    return f"the trainer of grpo.asynchronous has no such setting{did_you_mean(key, known)}"


def build_trainer(
    config: Config,
    settings: AsyncGRPOConfig,
    tokenizer: Any,
    rows: Sequence[Row],
    reward: SpawnedReward,
    **backends: Any,
) -> AsyncGRPOTrainer:
    """The trainer with a new adapter attached, and vLLM's weights and answers through `backends` where these are given.

    Raises UserError for what can't be trained so, Unreachable where no server answers.
    """
    _check_adapter(config)
    adapters.check_hardware(config.adapter, config.compute)
    where = source(config.model)
    settings.model_init_kwargs = _loading(config, where)
    settings.chat_template_kwargs = dict(template_switches(config.model))
    prompts = {"prompt": [row.prompt for row in rows], "row": list(range(len(rows)))}
    try:
        trainer = AsyncGRPOTrainer(
            model=where["pretrained_model_name_or_path"],
            args=settings,
            reward_funcs=reward,
            train_dataset=Dataset.from_dict(prompts),
            processing_class=tokenizer,
            peft_config=adapters.peft_config(config.adapter, config.model),
            **backends,
        )
    except TimeoutError as error:
        raise Unreachable(f"grpo.trainer.vllm_server_base_url: {error}") from error
    except ValueError as error:
        raise UserError(f"grpo.asynchronous: {error}") from error
    adapters.check_attached(trainer.model, config.adapter, config.model)
    attach(config, trainer)
    say(
        f"  {config.adapter.name}: {sum(p.numel() for p in trainer.model.parameters() if p.requires_grad):,} parameters"
    )
    return trainer


def train(trainer: AsyncGRPOTrainer, log: Log, terms: Mapping[str, Any]) -> Fitted:
    """Trains to the end. Raises UserError where the process that makes the answers ended for such."""
    args = trainer.args
    try:
        return fit(trainer, log, Course(rows_of_step(args), terms))
    except RuntimeError as error:
        # TRL tells of an error in that process by its class, its text and where it arose, as the cause's text.
        kind, _, told = str(error.__cause__).partition("\nTraceback")[0].partition(": ")
        if kind == UserError.__name__:
            raise UserError(told) from error
        raise


class Logged:
    """The trainer's logs as metrics, with those alarms that they have the values for.

    Raises Refused where one of these ends the run. What TRL calls kl is here the distance from the policy that
    answered, not from the start, and is logged as kl_to_sampler.
    """

    def __init__(self, settings: schema.Watch, sink: Sink) -> None:
        self._watch, self._window, self._sink = Watch(settings), settings.window, sink
        self._on: set[str] = set()

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        named = {"kl_to_sampler" if name == "kl" else name: value for name, value in values.items()}
        raised = self._watch.observe(named) if "reward" in named else []
        alarms = {name: value for name, value in metrics_of(raised).items() if name.partition("/")[2] not in UNWATCHED}
        self._sink.metrics({f"grpo/{name}": value for name, value in (named | alarms).items()}, step)
        for alarm in raised:
            if alarm.name not in self._on:
                say(f"  alarm at step {step}: {alarm} over the last {self._window} steps")
        self._on = {alarm.name for alarm in raised}
        stop_for(raised, step, self._window)


def _check_adapter(config: Config) -> None:
    adapter = config.adapter
    if adapter.method not in ("lora", "ia3"):
        raise UserError(f"adapter: grpo trains lora and ia3 adapters, not {adapter.method}")
    if adapters.changes_base(adapter):
        raise UserError(
            f"adapter.peft.init_lora_weights: {adapter.peft['init_lora_weights']} changes the base, which the vLLM "
            "server of grpo.asynchronous has as published"
        )


def _loading(config: Config, where: Mapping[str, Any]) -> dict[str, Any]:
    """How the trainer loads the base: what `pipelines.policy.base` loads, in the attention that it packs with."""
    published = AutoConfig.from_pretrained(**where)
    if config.model.architecture not in (published.architectures or []):
        raise UserError(f"model.architecture: expected {config.model.architecture}, got {published.architectures}")
    if published.to_dict().get("quantization_config"):
        raise UserError(f"model.id: {config.model.id} is published quantised; grpo.asynchronous trains none of these")
    if config.model.remote_code is not None:
        raise UserError("model.remote_code: grpo.asynchronous trains none of the models that bring code of their own")
    settings = {name: value for name, value in where.items() if name != "pretrained_model_name_or_path"}
    architecture = getattr(transformers, config.model.architecture)
    return settings | {"dtype": config.compute.dtype, "use_safetensors": True, "architecture": architecture}
