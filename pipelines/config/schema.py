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


SOURCE_KINDS = ("path", "hub", "sql", "traces", "rows")
Shape = Literal["auto", "columns", "messages", "prompt_completion", "prompt_answer", "alpaca", "sharegpt", "preference"]
PiiKind = Literal[
    "EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN", "URL", "CRYPTO", "MAC_ADDRESS"
]
Length = Annotated[int, Field(ge=0)]


# --- task ---------------------------------------------------------------------------------------


class SourceFields(Block):
    """Where records come from and how they become rows.

    One of `path`, `hub`, `sql`, `traces` and `rows` names the place. `prompt` to `tools` are column names;
    `constant_answer` replaces the answer column where all rows of the source share one. `parts`, `exclude`,
    `limit` and `weight` select: parts of a CLINC150 file or splits of a dataset, labels left out, how many rows
    a seeded sample keeps (null keeps all), and the source's share among the training sources with a weight.
    """

    path: Text | None
    format: Literal["auto", "csv", "tsv", "jsonl", "json", "parquet", "arrow", "clinc150"]
    hub: Text | None
    subset: Text | None
    revision: Text | None
    streaming: bool
    sql: Text | None
    url: Text | None
    traces: Text | None
    filter: Text | None
    rows: Text | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    split: Literal["train", "validation", "heldout"]
    records: Shape
    prompt: Text | None
    completion: Text | None
    answer: Text | None
    constant_answer: Text | None
    label: Text | None
    group: Text | None
    time: Text | None
    system: Text | None
    tools: Text | None
    parts: list[Text] | None
    exclude: list[Text]
    limit: Count | None
    weight: Annotated[float, Field(gt=0)] | None
    license: Text


class Source(SourceFields):
    """One source of a task, its fields completed from `conf/source.yaml`."""

    @property
    def kind(self) -> str:
        """Which of `SOURCE_KINDS` it is."""
        return next(kind for kind in SOURCE_KINDS if getattr(self, kind) is not None)

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        given = [kind for kind in SOURCE_KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"exactly one of {', '.join(SOURCE_KINDS)} must be set, got {got}")
        for field, kind in (("url", "sql"), ("filter", "traces"), ("subset", "hub"), ("revision", "hub")):
            if getattr(self, field) is not None and given != [kind]:
                raise ValueError(f"{field} belongs to {kind}, and only to it")
        if self.sha256 is not None and self.hub is not None:
            raise ValueError("a hub source is pinned by its revision, not by sha256")
        if self.sql is not None and self.url is None:
            raise ValueError("sql needs url, such as env:DATABASE_URL")
        return self

    @model_validator(mode="after")
    def _one_reading(self) -> "Source":
        if self.format == "clinc150" and self.parts is None:
            raise ValueError("format clinc150 needs parts")
        if self.answer is not None and self.constant_answer is not None:
            raise ValueError("at most one of answer and constant_answer may be set")
        if self.records == "columns" and self.prompt is None:
            raise ValueError("records: columns needs the name of the prompt's column, prompt")
        if self.records == "columns" and not (self.completion or self.answer or self.constant_answer):
            raise ValueError("records: columns needs one of completion, answer and constant_answer")
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


class Filters(Block):
    """Rows left out for their length or language; null leaves a bound open."""

    min_prompt_chars: Length | None
    max_prompt_chars: Length | None
    min_completion_chars: Length | None
    max_completion_chars: Length | None
    languages: list[Annotated[str, Field(pattern=r"^[a-z]{2}$")]] | None
    language_confidence: Annotated[float, Field(ge=0, le=1)]


class Redact(Block):
    """Personal data replaced by its kind; no kind leaves the text alone."""

    kinds: list[PiiKind]
    phone_regions: list[Annotated[str, Field(pattern=r"^[A-Z]{2}$")]] = Field(min_length=1)


class Duplicates(Block):
    """Rows of training and validation that repeat another: the first by id is kept."""

    exact: Literal["remove", "record"]
    near: Literal["remove", "record", "off"]
    threshold: Annotated[float, Field(gt=0, le=1)]


class Benchmark(Block):
    """A public test file that training must not have seen; `fields` hold its questions."""

    path: Text
    fields: list[Text] = Field(min_length=1)


class Contamination(Block):
    """Training rows against the held-out rows and benchmark files."""

    policy: Literal["remove", "fail", "record"]
    ngrams: list[Count] = Field(min_length=1)
    decisive: Count
    near: bool
    threshold: Annotated[float, Field(gt=0, le=1)]
    benchmarks: dict[str, Benchmark]

    @model_validator(mode="after")
    def _decisive_is_counted(self) -> "Contamination":
        if self.decisive not in self.ngrams:
            raise ValueError(f"decisive: {self.decisive} is not among ngrams {self.ngrams}")
        return self


class Heldout(Block):
    """Which rows are held out: those of sources with split: heldout, or a part of the training sources."""

    method: Literal["sources", "hash", "stratified", "time", "matched"]
    share: Annotated[float, Field(gt=0, lt=1)]
    after: Text | None
    size: Count | None
    shares: dict[str, Annotated[float, Field(gt=0, le=1)]] | None
    fixed: Text | None

    @model_validator(mode="after")
    def _matched_has_shares(self) -> "Heldout":
        if self.method == "matched" and not self.shares:
            raise ValueError("method: matched needs shares, a mapping from label to its share")
        if self.shares and abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares: expected a sum of 1, got {sum(self.shares.values()):g}")
        if self.after is not None and self.method != "time":
            raise ValueError("after belongs to method: time")
        return self


class PassRate(Block):
    """Training rows kept by how often the current model answers them right; samples null switches it off."""

    samples: Count | None
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]
    temperature: Annotated[float, Field(gt=0)]
    max_new_tokens: Count
    adapter: Text | None

    @model_validator(mode="after")
    def _is_a_band(self) -> "PassRate":
        if self.low > self.high:
            raise ValueError(f"low: {self.low:g} is over high, {self.high:g}")
        return self


class PrepareReport(Block):
    """How much the report shows: rows with template and mask, and rows whose tokens are counted."""

    examples: Count
    sample: Count


class Prepare(Block):
    """Rows from sources: checks, cleaning, contamination, splits."""

    on_error: Literal["fail", "quarantine"]
    max_reported: Count
    max_line_bytes: Count
    max_length: Count | None
    filters: Filters
    redact: Redact
    duplicates: Duplicates
    contamination: Contamination
    heldout: Heldout
    validation_share: Share
    validation_method: Literal["stratified", "hash", "time"]
    pass_rate: PassRate
    report: PrepareReport


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
    source: SourceFields
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
