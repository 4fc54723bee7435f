"""The block of the stage export."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.config.block import Block, Count, Text

Form = Literal["merged", "gguf", "gguf_q8_0", "gguf_q4_k_m", "gguf_adapter", "int8", "awq", "gptq", "fp8"]


class Calibration(Block):
    """The rows that a quantisation looks at: how many of which split, each cut to so many tokens."""

    split: Literal["train", "validation"]
    rows: Count
    max_tokens: Annotated[int, Field(ge=8)]


class Export(Block):
    """Which version is written in which other forms, and on how many held-out rows each is judged again."""

    model: Text | None
    rows: Text | None
    forms: list[Form] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None
    max_rows: Count | None
    alone_rows: Count
    identity_rows: Count
    calibration: Calibration
