"""Blocks of those who teach: the teacher, what it is asked to write, and how a student learns from it."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.config.block import Block, Count, EndpointFields, License, Name, Quantization, Text
from pipelines.config.watching import LossWatch

METHODS = ("on_policy", "prompted", "cross_tokenizer", "sequence", "stored_logits")
SERVED = ("on_policy", "prompted")  # methods whose teacher may be at an endpoint
FROM_GENERATED = ("sequence", "stored_logits")  # methods that learn from what generate wrote, without the teacher


class Teacher(EndpointFields):
    """Who is learnt from.

    kind base is the base model of this configuration, adapter a folder that a training stage wrote, version
    `models:/name/3` or `models:/name@alias`, model a folder of whole weights or a Hub id, endpoint whatever answers at
    an address; null: nobody. `quantization` is of a local teacher. `license` is that of what it writes; null takes its
    base's. `cache` holds an endpoint's answers, so that none is paid for twice; an endpoint that is away is waited for
    `patience_s` seconds.
    """

    kind: Literal["base", "adapter", "version", "model", "endpoint"] | None
    quantization: Quantization | None
    license: License | None
    cache: Text
    patience_s: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _is_complete(self) -> "Teacher":
        if self.kind in ("adapter", "version", "model", "endpoint") and self.at is None:
            raise ValueError(f"kind {self.kind} needs at")
        if self.kind in ("base", None) and self.at is not None:
            raise ValueError(f"kind {self.kind or 'null'} takes no at; set kind to adapter, version, model or endpoint")
        if self.kind == "endpoint" and self.model is None:
            raise ValueError("kind endpoint needs model, the name that the endpoint knows it by")
        if self.kind == "endpoint" and self.license is None:
            raise ValueError("kind endpoint needs license: {id, conditions, url}, under which its answers may be used")
        if self.kind == "endpoint" and self.quantization is not None:
            raise ValueError("quantization belongs to a teacher that is loaded here, not to an endpoint")
        return self


class Distill(Block):
    """Learning from a teacher; `trainer` is handed to the TRL trainer of the method as it stands.

    `start` adapter goes on from `adapter` (null: this configuration's), base trains a new one. `prompt` is what a
    prompted teacher is told and the student isn't. `top_k` are the likeliest tokens of each place that a teacher at an
    endpoint tells.
    """

    rows: Text | None
    generated: Text | None
    adapter: Text | None
    start: Literal["adapter", "base"]
    method: Literal["on_policy", "prompted", "cross_tokenizer", "sequence", "stored_logits"]
    prompt: Text | None
    top_k: Count
    recipe: Name
    watch: LossWatch
    trainer: dict[str, Any]

    @model_validator(mode="after")
    def _prompt_is_the_teachers(self) -> "Distill":
        if self.prompt is None and self.method == "prompted":
            raise ValueError("method prompted needs prompt, what the teacher is told and the student isn't")
        if self.prompt is not None and self.method != "prompted":
            raise ValueError(f"prompt belongs to method prompted; method is {self.method}")
        return self


class Keep(Block):
    """Which of a teacher's answers become rows.

    `verified`: those that the task's verify accepts. At most `per_row` of each row; of two that share more than
    `similarity` of their words only one (null keeps both).
    """

    verified: bool
    per_row: Count
    similarity: Annotated[float, Field(gt=0, le=1)] | None


class AnswerJudge(EndpointFields):
    """A language model that says yes or no to an answer; `at` null asks none."""

    prompt: Text


class Generate(Block):
    """What a teacher says about rows: its answers, its distributions, or both.

    `answers` are its tries at each row (null: the rows' own completions stay), `temperature` null is greedy. `limit`
    is a seeded sample of the rows. A row none of whose answers is kept has its own completion or is left out
    (`missing`). `top_k` stores so many of the teacher's likeliest tokens at each place (null: none).
    """

    rows: Text | None
    answers: Count | None
    temperature: Annotated[float, Field(gt=0)] | None
    max_new_tokens: Count
    limit: Count | None
    at_once: Count
    keep: Keep
    missing: Literal["own", "drop"]
    judge: AnswerJudge
    top_k: Count | None

    @model_validator(mode="after")
    def _says_something(self) -> "Generate":
        if self.answers is None and self.top_k is None:
            raise ValueError("answers and top_k: at least one of them has to be set")
        if self.temperature is None and (self.answers or 1) > 1:
            raise ValueError(f"answers: {self.answers} greedy answers would all be the same; set temperature")
        if self.answers is not None and self.keep.per_row > self.answers:
            raise ValueError(f"keep.per_row: {self.keep.per_row} is over answers, {self.answers}")
        return self
