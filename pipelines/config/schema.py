"""What each block of the composed configuration may hold.

Values live in `conf/`; the schema has no defaults, so that a value has one home. Unknown keys are
refused, and types are strict: `"3"` is no number and `1` is no boolean.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]


class Block(BaseModel):
    """A mapping in the configuration: frozen, strict, no unknown key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# --- task ---------------------------------------------------------------------------------------


class Source(Block):
    """One file of a task and how its records become rows.

    `prompt` and `answer` are column names; `constant_answer` replaces the answer column where all
    rows of the source share one. `parts`, `exclude` and `limit` select: the parts of a CLINC150
    file, labels left out, and how many rows a seeded sample keeps (null keeps all).
    """

    path: Text
    format: Literal["csv", "jsonl", "clinc150"]
    split: Literal["train", "validation", "heldout"]
    prompt: Text
    answer: Text | None
    constant_answer: Text | None
    parts: list[Text] | None
    exclude: list[Text]
    limit: Count | None
    license: Text

    @model_validator(mode="after")
    def _one_answer(self) -> "Source":
        if (self.answer is None) == (self.constant_answer is None):
            raise ValueError("exactly one of answer and constant_answer must be set")
        if (self.format == "clinc150") != (self.parts is not None):
            raise ValueError("parts belongs to format clinc150, and only to it")
        if self.exclude and self.answer is None and self.format != "clinc150":
            raise ValueError("exclude names labels, and this source has no answer column")
        return self


class Task(Block):
    """What the rows are and what correct means."""

    name: Name
    verify: Text
    instruction: Text | None
    labels: Text | None
    decline_label: Text | None
    sources: dict[str, Source]


# --- model, adapter, compute --------------------------------------------------------------------


class License(Block):
    """SPDX identifier or the community licence's name, with its conditions in a sentence."""

    id: Text
    conditions: Text | None
    url: Text | None


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
    `target_parameters` are the fused 3-D expert parameters, used only when
    `adapter.train_experts` is true.
    """

    target_modules: list[Text] = Field(min_length=1)
    exclude_modules: Text | None
    target_parameters: list[Text]
    feedforward_modules: list[Text]


class Model(Block):
    """A supported base model: a Hub id or a local folder, pinned by revision."""

    name: Name
    id: Text
    revision: Text | None
    license: License
    architecture: Text
    context_length: Count
    chat: Chat
    targets: Targets
    learning_rate: Annotated[float, Field(gt=0, lt=1)]


class Quantization(Block):
    """bitsandbytes 4-bit settings of the base model."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"]
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"]


class Adapter(Block):
    """A peft method; `peft` is handed to its configuration class as it stands."""

    name: Name
    method: Literal["lora", "ia3", "prefix_tuning", "p_tuning"]
    train_experts: bool
    quantization: Quantization | None
    peft: dict[str, Any]


class Compute(Block):
    """The machine: device, number format, attention, and the batch that fits."""

    name: Name
    device: Literal["cpu", "cuda"]
    memory_gb: Annotated[float, Field(gt=0)] | None
    dtype: Literal["float32", "bfloat16", "float16"]
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    gradient_checkpointing: bool
    eval_batch_size: Count


# --- stages -------------------------------------------------------------------------------------


class Prepare(Block):
    """Rows from sources: the share kept for validation, what happens to bad records."""

    validation_share: Share
    max_reported: Count


class Audit(Block):
    """The loss-mask audit before the first step."""

    max_truncated_answers: Annotated[int, Field(ge=0)]
    examples: Count


class Sft(Block):
    """Supervised fine-tuning; `trainer` is handed to `trl.SFTConfig` as it stands."""

    rows: Text | None
    loss: Literal["completion", "assistant"]
    early_stopping_patience: Count | None
    audit: Audit
    trainer: dict[str, Any]


class Evaluate(Block):
    """Held-out scores of the base and the adapter on the same rows."""

    rows: Text | None
    adapter: Text | None
    max_rows: Count | None
    max_new_tokens: Count
    resamples: Annotated[int, Field(ge=100)]
    worst: Count


class Package(Block):
    """The registered model's name and the products it is made of."""

    adapter: Text | None
    scores: Text | None
    registered_model: Text


class Promote(Block):
    """Which version goes to which alias."""

    model: Text | None
    to: Name


class Rule(Block):
    """One bound on one metric of the version's evaluation, and why it is asked."""

    metric: Text
    bound: Literal["at_least", "at_most", "above"]
    value: float
    reason: Text


class Gate(Block):
    """A promotion policy: every rule must pass."""

    name: Name
    rules: dict[str, Rule] = Field(min_length=1)


# --- the whole ----------------------------------------------------------------------------------


class Tracking(Block):
    """Where MLflow keeps runs; `uri` null is the SQLite store in the project folder."""

    uri: Text | None
    experiment: Text
    system_metrics: bool


class Paths(Block):
    """Folders for products, relative to the project folder unless absolute."""

    rows: Text
    adapters: Text
    outputs: Text


class Config(Block):
    """The composed configuration; each stage reads the blocks that `pipelines.stages` lists for it."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    reuse: bool
    tracking: Tracking
    paths: Paths
    task: Task
    model: Model
    adapter: Adapter
    compute: Compute
    gate: Gate
    prepare: Prepare
    sft: Sft
    evaluate: Evaluate
    package: Package
    promote: Promote
