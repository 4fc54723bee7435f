"""What a stage of this configuration would do on a card, as a `Job`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.config.schema import Compute, Config
from pipelines.planning.architecture import settings_of
from pipelines.planning.facts import Facts, kept_facts
from pipelines.planning.memory import Job

STAGES = ("sft", "grpo", "distill")
TRL_MAX_LENGTH = 1024  # trl.SFTConfig's own
FLASH = ("flash_attention_2", "flash_attention_3", "flex_attention")


def facts_for(config: Config) -> Facts:
    """What is known of the configured model and adapter: kept, or else computed, which imports torch.

    Raises UserError where the architecture can't be had.
    """
    settings = settings_of(config.model)
    found = kept_facts(config.model, config.adapter, settings)
    if found is not None:
        return found
    from pipelines.planning.computed import computed_facts

    return computed_facts(settings, config.model, config.adapter)


def trainer_of(stage: str, config: Config) -> dict[str, Any]:
    """The stage's settings of its trainer."""
    found: dict[str, Any] = getattr(config, stage).trainer
    return found


def length_of(stage: str, config: Config) -> int:
    """Tokens of the longest sequence that the stage trains on."""
    trainer = trainer_of(stage, config)
    if config.plan.sequence_length is not None:
        return config.plan.sequence_length
    if stage == "sft" or (stage == "distill" and trainer.get("max_length") is not None):
        return int(trainer.get("max_length") or TRL_MAX_LENGTH)
    return config.plan.prompt_length + int(trainer.get("max_completion_length") or 256)


def job_of(stage: str, config: Config) -> Job:
    """The stage as configured, on the configured cards."""
    trainer, compute = trainer_of(stage, config), config.compute
    micro_batch = int(trainer.get("per_device_train_batch_size") or compute.per_device_train_batch_size)
    packed = bool(trainer.get("packing")) or bool(trainer.get("padding_free"))
    strategy, cards = strategy_of(config)
    return Job(
        micro_batch=micro_batch,
        length=length_of(stage, config),
        checkpointing=bool(trainer.get("gradient_checkpointing", compute.gradient_checkpointing)),
        every_n=int((trainer.get("gradient_checkpointing_kwargs") or {}).get("every_n_layers", 1)),
        dtype=compute.dtype,
        quantization=config.adapter.quantization,
        quantized_experts=config.adapter.quantization is not None and config.adapter.quantization.experts,
        optim=str(trainer.get("optim", "adamw_torch_fused")),
        masked=compute.attn_implementation not in FLASH and not packed,
        strategy=strategy,
        cards=cards,
        offload=_offload(compute),
        samples=_samples(stage, trainer, micro_batch),
        reference=stage == "grpo" and float(trainer.get("beta") or 0.0) > 0,
    )


def strategy_of(config: Config) -> tuple[str, int]:
    """The configured strategy and number of cards."""
    return config.compute.strategy, config.compute.num_processes * config.compute.num_nodes


def _offload(compute: Compute) -> tuple[str, ...]:
    zero: Mapping[str, Any] = (compute.deepspeed or {}).get("zero_optimization") or {}
    return tuple(
        name
        for name in ("optimizer", "param")
        if (zero.get(f"offload_{name}") or {}).get("device", "none") not in ("none", None)
    )


def _samples(stage: str, trainer: dict[str, Any], micro_batch: int) -> int:
    """Sequences that transformers generates at once on a card; 0 where a server does, or nobody."""
    if stage == "sft" or trainer.get("use_vllm"):
        return 0
    if stage == "distill":
        return micro_batch if float(trainer.get("lmbda") or 0.0) > 0 else 0
    steps = trainer.get("steps_per_generation") or trainer.get("gradient_accumulation_steps") or 1
    return micro_batch * int(steps)


def on_cards(job: Job, cards: int, strategy: str) -> Job:
    """The same work on so many cards."""
    return replace(job, cards=cards, strategy=strategy if cards > 1 else "ddp")
