"""TRL's GRPOTrainer over rows, from a new adapter or one that is trained on."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.policy import adapter as adapters
from pipelines.policy.base import template_switches
from pipelines.policy.fit import BeginAt, Course, Fitted, fit, trainer_settings
from pipelines.policy.learner import begin, load_learner, peft_of
from pipelines.policy.row_names import ByNumber
from pipelines.policy.shared_prompt import SharedPromptTrainer, can_share
from pipelines.policy.tool_parsing import ready_for_tools
from pipelines.product import Product
from pipelines.progress import say

Reward = Callable[..., list[float | None]]


def settings_of(config: Config, work: Path) -> GRPOConfig:
    """`trl.GRPOConfig` from `grpo.trainer`. Raises UserError where it refuses a value, or a restart can't be exact."""
    settings: GRPOConfig = trainer_settings(GRPOConfig, "grpo.trainer", config, work)
    local = settings.per_device_train_batch_size * settings.steps_per_generation
    if local % settings.num_generations:
        raise UserError(
            f"grpo.trainer.num_generations: a process generates {local} answers at once (per_device_train_batch_size x "
            f"steps_per_generation), which has to be a multiple of {settings.num_generations}"
        )
    shared = steps_at_once(settings)
    if settings.save_strategy == "steps" and settings.save_steps % shared:
        raise UserError(
            f"grpo.trainer.save_steps: {shared} steps share what is generated for them, so it has to be a multiple of "
            f"{shared}, got {settings.save_steps:g}"
        )
    return settings


def steps_at_once(settings: GRPOConfig) -> int:
    """Optimizer steps that learn from one generation."""
    micro = settings.steps_per_generation * settings.num_iterations
    return max(1, micro // settings.gradient_accumulation_steps)


@dataclass(frozen=True)
class Asked:
    """What the trainer asks and who judges: rows, reward functions with their weights, and the environment."""

    rows: Sequence[Row]
    rewards: Sequence[Reward]
    weights: Sequence[float]
    environment: type | None


def load_policy(config: Config, settings: GRPOConfig, parent: Product | None) -> Any:
    """What training begins from: the base, with `parent`'s adapter if there is one.

    Raises UserError for what can't be trained.
    """
    _check_method(config, settings, parent)
    return load_learner(config, parent)


def build_trainer(
    config: Config, settings: GRPOConfig, policy: Any, tokenizer: Any, asked: Asked, work: Path
) -> GRPOTrainer:
    """The trainer over the policy; one without an adapter gets a new one."""
    settings.reward_weights = list(asked.weights)
    settings.chat_template_kwargs = dict(template_switches(config.model))
    if asked.environment is not None:
        ready_for_tools(tokenizer)
        settings.max_tool_calling_iterations = (config.task.max_turns or 1) - 1
    shared = can_share(settings, policy)
    trainer = (SharedPromptTrainer if shared else GRPOTrainer)(
        model=policy,
        args=settings,
        reward_funcs=list(asked.rewards),
        train_dataset=_dataset(asked),
        processing_class=tokenizer,
        peft_config=peft_of(config, policy),
        environment_factory=asked.environment,
    )
    trainer.row_ids = ByNumber([row.id for row in asked.rows])
    begin(config, policy, trainer, work)
    say(f"  prompts are computed {'once for all of their answers' if shared else 'anew for each of their answers'}")
    return trainer


def reinforce(trainer: GRPOTrainer, begin_at: BeginAt, log: Any, terms: Mapping[str, Any]) -> Fitted:
    """Trains to the end or on from the newest checkpoint, of whose step and logs `begin_at` is told."""
    args = trainer.args
    per_step = args.generation_batch_size // steps_at_once(args)
    return fit(trainer, log, Course(per_step, terms, steps_at_once(args), begin_at))


def _dataset(asked: Asked) -> Dataset:
    """A row's number stands for it; an environment begins its episode by the other columns."""
    columns: dict[str, list[Any]] = {
        "prompt": [row.prompt for row in asked.rows],
        "row": list(range(len(asked.rows))),
    }
    if asked.environment is not None:
        columns |= {"kept": [json.dumps(row.kept) for row in asked.rows], "answer": [row.answer for row in asked.rows]}
    return Dataset.from_dict(columns)


def _check_method(config: Config, settings: GRPOConfig, parent: Product | None) -> None:
    if config.adapter.method in ("prefix_tuning", "p_tuning"):
        raise UserError(f"adapter: grpo trains lora and ia3 adapters, not {config.adapter.method}")
    if settings.beta and parent is None and adapters.changes_base(config.adapter):
        start = config.adapter.peft["init_lora_weights"]
        raise UserError(
            f"grpo.trainer.beta: the reference is the base without its adapter, and {start} moves a part of the base "
            "into the adapter; set beta=0 or another start"
        )
