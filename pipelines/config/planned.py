"""The block of the stage plan."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.config.block import Block, Count

Gigabytes = Annotated[float, Field(gt=0)]


class Plan(Block):
    """What is planned, on which machines, and at which price.

    `auto` lets the training stages take the plan's micro-batch, accumulation and checkpointing.
    """

    stage: Literal["sft", "grpo", "distill"]
    auto: bool
    memory_gb: list[Gigabytes] = Field(min_length=1)
    cards: list[Count] = Field(min_length=1)
    sequence_length: Count | None
    prompt_length: Count
    tokens: Count | None
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None
