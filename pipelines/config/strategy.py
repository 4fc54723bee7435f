"""How several processes share one training: what `compute.strategy` and its settings may hold."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from pipelines.config.block import Block

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}  # of ZeRO
Auto = Literal["auto"]
_CLOSED = ConfigDict(extra="forbid", strict=True)


class Offload(TypedDict, total=False):
    """Where DeepSpeed keeps what the device has no room for."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    device: Literal["cpu", "nvme", "none"]
    pin_memory: bool
    nvme_path: str
    buffer_count: int
    buffer_size: int
    max_in_cpu: int
    pipeline_read: bool
    pipeline_write: bool
    fast_init: bool
    ratio: float


class Zero(TypedDict, total=False):
    """DeepSpeed's `zero_optimization`, under its own names."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    stage: Literal[1, 2, 3]
    contiguous_gradients: bool
    reduce_scatter: bool
    reduce_bucket_size: int | Auto
    allgather_partitions: bool
    allgather_bucket_size: int
    overlap_comm: bool
    round_robin_gradients: bool
    offload_param: Offload
    offload_optimizer: Offload
    sub_group_size: int
    stage3_max_live_parameters: int
    stage3_max_reuse_distance: int
    stage3_prefetch_bucket_size: int | Auto
    stage3_param_persistence_threshold: int | Auto
    stage3_gather_16bit_weights_on_model_save: bool
    zero_hpz_partition_size: int


class Precision(TypedDict, total=False):
    """DeepSpeed's `bf16` and `fp16`; `auto` follows compute.dtype."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    enabled: bool | Auto
    loss_scale: float
    initial_scale_power: int
    loss_scale_window: int
    hysteresis: int
    min_loss_scale: float


class DeepSpeed(TypedDict, total=False):
    """DeepSpeed's configuration, as `TrainingArguments.deepspeed` takes it; `auto` follows the trainer's settings."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    zero_optimization: Zero
    zero_force_ds_cpu_optimizer: bool
    zero_allow_untested_optimizer: bool
    bf16: Precision
    fp16: Precision
    gradient_clipping: float | Auto
    gradient_accumulation_steps: int | Auto
    train_micro_batch_size_per_gpu: int | Auto
    train_batch_size: int | Auto
    communication_data_type: str
    steps_per_print: int
    wall_clock_breakdown: bool


class Fsdp(TypedDict, total=False):
    """Settings of `TrainingArguments.fsdp_config`."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]
    version: Literal[2]
    auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"]
    transformer_layer_cls_to_wrap: list[str]
    min_num_params: int
    reshard_after_forward: bool
    state_dict_type: Literal["FULL_STATE_DICT"]
    cpu_offload: bool
    cpu_ram_efficient_loading: bool
    activation_checkpointing: bool


class Rendezvous(Block):
    """Where the nodes of a training meet; null values are read from the environment of the engine that started it."""

    endpoint: Annotated[str, Field(pattern=r"^\S+:\d+$")] | None
    node_rank: Annotated[int, Field(ge=0)] | None
    timeout_s: Annotated[int, Field(ge=1)]


def mismatch(strategy: str, deepspeed: DeepSpeed | None, fsdp: Fsdp | None) -> str:
    """Why the settings aren't those of the strategy; empty where they are."""
    held: dict[str, Any] = {"deepspeed": deepspeed, "fsdp": fsdp}
    wanted = "deepspeed" if strategy in STAGES else "fsdp" if strategy == "fsdp2" else None
    for name, given in held.items():
        if (given is not None) != (name == wanted):
            return (
                f"compute.{name}: {'missing' if given is None else 'without effect'} with compute.strategy {strategy}"
            )
    if deepspeed is not None and (stage := deepspeed.get("zero_optimization", {}).get("stage")) != STAGES[strategy]:
        return f"compute.deepspeed.zero_optimization.stage: expected {STAGES[strategy]} of {strategy}, got {stage}"
    return ""
