"""Base model, adapter and machine: the part of the configuration that a registered version takes along."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.config.block import Block, Count, License, Name, Quantization, Text
from pipelines.config.strategy import DeepSpeed, Fsdp, Rendezvous, Strategy


class Thinking(Block):
    """The chat template's switch for thinking and the value used here."""

    switch: Text
    value: bool | Text


class Chat(Block):
    """How the base model's chat template behaves."""

    notes: Text
    thinking: Thinking | None


class Targets(Block):
    """Where adapters attach, by module or parameter name as transformers names them.

    `exclude_modules` is a pattern that keeps a part of the model out (a vision tower);
    `target_parameters` are the fused 3-D expert parameters, used only when `adapter.train_experts` is true;
    `shared_expert_parameters`, of shared experts that `target_modules` can't name, with `adapter.train_shared_experts`;
    `router_parameters` with `adapter.train_router`.
    """

    target_modules: list[Text] = Field(min_length=1)
    exclude_modules: Text | None
    target_parameters: list[Text]
    shared_expert_parameters: list[Text]
    router_parameters: list[Text]
    feedforward_modules: list[Text]


class RemoteCode(Block):
    """Code of a checkpoint's own that may run: of this commit, or content of a local folder, as it was read."""

    revision: Annotated[str, Field(pattern=r"^([0-9a-f]{40}|sha256:[0-9a-f]{64})$")]
    reason: Text


class Model(Block):
    """A supported base model: a Hub id or a local folder, pinned by revision."""

    name: Name
    id: Text
    revision: Text | None
    remote_code: RemoteCode | None
    license: License
    architecture: Text
    context_length: Count
    chat: Chat
    targets: Targets
    learning_rate: Annotated[float, Field(gt=0, lt=1)]


class Adapter(Block):
    """A peft method; `peft` is handed to its configuration class as it stands."""

    name: Name
    method: Literal["lora", "ia3", "prefix_tuning", "p_tuning"]
    train_experts: bool
    train_shared_experts: bool
    train_router: bool
    quantization: Quantization | None
    peft: dict[str, Any]


class Compute(Block):
    """The machine: device, number format, attention, the batch that fits, and how processes share the work.

    `num_processes` are those of each node; `deepspeed` and `fsdp` are what the chosen file of conf/strategy/ says.
    """

    name: Name
    device: Literal["cpu", "cuda"]
    memory_gb: Annotated[float, Field(gt=0)] | None
    dtype: Literal["float32", "bfloat16", "float16"]
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    rollout_accumulation_steps: Count
    gradient_checkpointing: bool
    eval_batch_size: Count
    num_processes: Count
    num_nodes: Count
    strategy: Strategy
    deepspeed: DeepSpeed | None
    fsdp: Fsdp | None
    rendezvous: Rendezvous
