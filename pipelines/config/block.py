"""What blocks of the configuration are made of: strict mappings, and parts that several of them share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
Length = Annotated[int, Field(ge=0)]


class Block(BaseModel):
    """A mapping in the configuration: frozen, strict, no unknown key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class License(Block):
    """SPDX identifier or the community licence's name, with its conditions in a sentence."""

    id: Text
    conditions: Text | None
    url: Text | None


class Quantization(Block):
    """bitsandbytes 4-bit settings of the base model; `experts`: of its fused 3-D experts too."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"]
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"]
    experts: bool


class EndpointFields(Block):
    """An OpenAI-compatible endpoint: where it is, how it is asked, and what it may cost.

    `at` is its address up to `/v1`, `api_key` reads `env:NAME`. Prices are US dollars per million tokens;
    nothing is sent that could go over `spending_limit` dollars.
    """

    at: Text | None
    model: Text | None
    api_key: Annotated[str, Field(pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$")] | None
    concurrency: Count
    timeout_s: Annotated[float, Field(gt=0)]
    retries: Length
    price_in: Annotated[float, Field(ge=0)] | None
    price_out: Annotated[float, Field(ge=0)] | None
    spending_limit: Annotated[float, Field(gt=0)] | None

    @model_validator(mode="after")
    def _limit_needs_prices(self) -> "EndpointFields":
        if self.spending_limit is not None and (self.price_in is None or self.price_out is None):
            raise ValueError("spending_limit needs price_in and price_out")
        return self
