"""The block of the stage package."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.config.block import Block, Count, Text

Difference = Annotated[float, Field(ge=0)]


class Tolerance(Block):
    """The largest difference of a token's log-probability that still counts as the same answer, by dtype."""

    float32: Difference
    float16: Difference
    bfloat16: Difference


class Parity(Block):
    """The same rows asked of every form of the model; a form of `require` that differs refuses the version."""

    prompts: Count
    merged: bool
    endpoint: bool
    require: list[Literal["reloaded", "merged", "pyfunc", "endpoint", "nf4_base_to_16bit"]]
    tolerance: Tolerance


class Package(Block):
    """The registered model's name, the products it is made of, and how its forms are held against one another."""

    adapter: Text | None
    scores: Text | None
    registered_model: Text
    parity: Parity
