"""What each block of the composed configuration may hold.

Values live in `conf/`; the schema has no defaults, so that a value has one home. Unknown keys are
refused, and types are strict: `"3"` is no number and `1` is no boolean.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.config.block import (
    Block,
    Count,
    EndpointFields,
    Length,
    Name,
    Share,
    Text,
)
from pipelines.config.engine import Engine, Job
from pipelines.config.exporting import Export
from pipelines.config.gating import Gate, Promote, Rollback
from pipelines.config.modelling import Adapter as Adapter
from pipelines.config.modelling import Compute as Compute
from pipelines.config.modelling import Model as Model
from pipelines.config.packaging import Package
from pipelines.config.planned import Plan
from pipelines.config.provenance import Lineage, Reproduce
from pipelines.config.serving import Deploy, Serve
from pipelines.config.teaching import FROM_GENERATED, Distill, Generate, Teacher
from pipelines.config.watching import Alarm, LossWatch

SOURCE_KINDS = ("path", "hub", "sql", "traces", "rows", "generate")
Shape = Literal[
    "auto",
    "columns",
    "messages",
    "prompt_completion",
    "prompt_answer",
    "alpaca",
    "sharegpt",
    "preference",
    "openai_evals",
]
PiiKind = Literal[
    "EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN", "URL", "CRYPTO", "MAC_ADDRESS"
]


# --- task ---------------------------------------------------------------------------------------


class SourceFields(Block):
    """Where records come from and how they become rows.

    One of `path`, `hub`, `sql`, `traces`, `rows` and `generate` names the place. `count`, `seed` and `settings` belong
    to generators. `prompt` to `context` are column names, and
    `keep` names columns that stay with the row as they are, for slices;
    `constant_answer` replaces the answer column where all rows of the source share one. `parts`, `exclude`,
    `limit` and `weight` select: parts of a CLINC150 file or splits of a dataset, labels left out, how many rows
    a seeded sample keeps (null keeps all), and the source's share among the training sources with a weight.
    `attribution` is the line that `license` asks for: who made it, what it is called, where it is from.
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
    generate: Text | None
    count: Count | None
    seed: Length | None
    settings: dict[str, Any]
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
    context: Text | None
    keep: list[Text]
    parts: list[Text] | None
    exclude: list[Text]
    limit: Count | None
    weight: Annotated[float, Field(gt=0)] | None
    license: Text
    attribution: Text | None


_FIELD_OF = {
    "url": "sql",
    "filter": "traces",
    "subset": "hub",
    "revision": "hub",
    "count": "generate",
    "seed": "generate",
    "settings": "generate",
}


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
        for field, kind in _FIELD_OF.items():
            if getattr(self, field) not in (None, {}) and given != [kind]:
                raise ValueError(f"{field} belongs to {kind}, and only to it")
        if self.generate is not None and (self.count is None or self.seed is None):
            raise ValueError("generate needs count and seed")
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
    """What the rows are and what correct means.

    `audit` is a stricter second verify that only reinforcement learning's watch asks; `environment` names the tools
    that answers may call, in at most `max_turns` turns; `json_schema` is a file that answers of verify json_schema are
    held against.
    """

    name: Name
    verify: Text
    audit: Text | None
    environment: Text | None
    max_turns: Count | None
    json_schema: Text | None
    instruction: Text | None
    labels: Text | None
    decline_label: Text | None
    card: Text | None
    red_team: list[Text]
    sources: dict[str, Source]

    @model_validator(mode="after")
    def _turns_belong_to_an_environment(self) -> "Task":
        if (self.environment is None) != (self.max_turns is None):
            raise ValueError("environment and max_turns belong together: set both, or neither")
        return self


# --- training --------------------------------------------------------------------------------------


class Muon(Block):
    """`torch.optim.Muon`'s settings, by its own names."""

    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    ns_steps: Annotated[int, Field(ge=1, le=99)]
    adjust_lr_fn: Literal["original", "match_rms_adamw"]


class QkClip(Block):
    """The attention logit above which a head's adapters on queries and keys shrink."""

    tau: Annotated[float, Field(gt=0)]


class Optimizer(Block):
    """What sft, grpo and distill train with: `optim` is their trainer's, the others lie over it where they are set."""

    name: Name
    optim: Text
    lora_plus_ratio: Annotated[float, Field(ge=1)] | None
    muon: Muon | None
    qk_clip: QkClip | None

    @model_validator(mode="after")
    def _one_rule_for_matrices(self) -> "Optimizer":
        if self.muon is not None and self.lora_plus_ratio is not None:
            raise ValueError("muon and lora_plus_ratio both decide how B is updated: set one of them to null")
        return self


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


class Band(Block):
    """Training rows kept by how often the current model answers them right; samples null switches it off."""

    samples: Count | None
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _is_a_band(self) -> "Band":
        if self.low > self.high:
            raise ValueError(f"low: {self.low:g} is over high, {self.high:g}")
        return self


class PassRate(Band):
    """The same where no adapter is at hand yet: which one answers, and how."""

    temperature: Annotated[float, Field(gt=0)]
    max_new_tokens: Count
    adapter: Text | None


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
    watch: LossWatch
    trainer: dict[str, Any]


class Correct(Block):
    """The weight of being right: 1 where `verify` accepts the answer, else 0."""

    weight: Annotated[float, Field(gt=0)]


class Part(Block):
    """A part of the reward that only shapes: clipped to [low, high], then weighed; weight 0 leaves it out."""

    weight: Annotated[float, Field(ge=0)]
    low: float
    high: float

    @model_validator(mode="after")
    def _is_a_range(self) -> "Part":
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g} is not under high, {self.high:g}")
        return self

    @property
    def spread(self) -> float:
        """How far the part can move a reward."""
        return self.weight * (self.high - self.low)


class LengthPart(Part):
    """0 up to `soft_tokens` under the limit of tokens, then falling to -1 at it."""

    soft_tokens: Count


class RepetitionPart(Part):
    """Minus the share of word n-grams that occurred before."""

    ngram: Count


class LanguagePart(Part):
    """How sure it is that the answer is in the language; null takes the prompt's."""

    language: Annotated[str, Field(pattern=r"^[a-z]{2}$")] | None


class Rewards(Block):
    """A weighted sum of parts; those that only shape can't outweigh being right."""

    correct: Correct
    format: Part
    length: LengthPart
    repetition: RepetitionPart
    language: LanguagePart

    @property
    def shaping(self) -> dict[str, Part]:
        """The parts beside correctness that have a weight."""
        found = {"format": self.format, "length": self.length, "repetition": self.repetition, "language": self.language}
        return {name: part for name, part in found.items() if part.weight}

    @model_validator(mode="after")
    def _correct_outweighs(self) -> "Rewards":
        spread = sum(part.spread for part in self.shaping.values())
        if spread >= self.correct.weight:
            told = ", ".join(f"{name} {part.spread:g}" for name, part in self.shaping.items())
            raise ValueError(
                f"a wrong answer could be worth as much as a right one: together the parts that only shape move a "
                f"reward by {spread:g} ({told}), and being right by {self.correct.weight:g}; lower a weight or narrow "
                "low and high"
            )
        return self


class Watch(Block):
    """What tells that a reward is being gamed or that training has gone wrong, over the last `window` steps."""

    window: Count
    audit_share: Annotated[float, Field(ge=0, le=1)]
    audit_gap: Alarm
    zero_variance: Alarm
    entropy: Alarm
    length_growth: Alarm
    clipped: Alarm
    kl: Alarm


class Show(Block):
    """How often completions are shown and episodes traced, in optimizer steps; null never."""

    table_steps: Count | None
    table_groups: Count
    trace_steps: Count | None


class Grpo(Block):
    """Reinforcement learning with verifiable rewards; `trainer` is handed to `trl.GRPOConfig` as it stands.

    `start` adapter goes on from `adapter` (null: this configuration's), base trains a new one.
    """

    rows: Text | None
    adapter: Text | None
    start: Literal["adapter", "base"]
    asynchronous: bool
    pass_rate: Band
    rewards: Rewards
    watch: Watch
    show: Show
    recipe: Name
    trainer: dict[str, Any]


class Sandbox(Block):
    """Where programs that a model wrote are run, and what one of them may use.

    `bubblewrap` isolates them on this machine; `sandbox_fusion` and `piston` send them to a server at `url`; `none`
    runs them unprotected, which needs `allow_unsandboxed`. `fresh_namespaces` gives every program its own.
    """

    backend: Literal["bubblewrap", "sandbox_fusion", "piston", "none"]
    url: Text | None
    allow_unsandboxed: bool
    fresh_namespaces: bool
    cpu_s: Annotated[float, Field(gt=0)]
    wall_s: Annotated[float, Field(gt=0)]
    memory_mb: Annotated[int, Field(ge=16)]
    output_kb: Count
    processes: Count

    @model_validator(mode="after")
    def _is_complete(self) -> "Sandbox":
        remote = self.backend in ("sandbox_fusion", "piston")
        if remote and self.url is None:
            raise ValueError(f"backend {self.backend} needs url, the server's address")
        if not remote and self.url is not None:
            raise ValueError(f"url belongs to the backends sandbox_fusion and piston, not to {self.backend}")
        if self.backend == "none" and not self.allow_unsandboxed:
            raise ValueError("backend none runs a model's programs unprotected; it needs allow_unsandboxed=true")
        return self


class Verifier(Block):
    """The processes that verifiers run in, and what they may use.

    A verifier that outlasts `time_s`, outgrows `memory_mb`, dies or errs has said nothing about the answer: it is
    asked once more, then counted apart, and where more than `max_failed` of the answers end so the run stops.
    """

    workers: Count
    time_s: Annotated[float, Field(gt=0)]
    memory_mb: Annotated[int, Field(ge=64)]
    max_failed: Annotated[float, Field(ge=0, le=1)]
    sandbox: Sandbox


class SubjectFields(EndpointFields):
    """What is judged.

    kind base is the base model of this configuration and adapter a folder that a training stage wrote (`at` null:
    the adapter of this configuration); parent is the adapter that this configuration's was trained on from; version is
    `models:/name/3` or `models:/name@alias`; model is a folder of merged or quantised weights, or a Hub id; endpoint
    answers over HTTP. An `optional` subject that isn't there is left out.
    """

    kind: Literal["base", "adapter", "parent", "version", "model", "endpoint"] | None
    optional: bool


class Subject(SubjectFields):
    """One subject, its fields completed from `conf/subject.yaml`."""

    @model_validator(mode="after")
    def _is_complete(self) -> "Subject":
        if self.kind is None:
            raise ValueError("kind must be one of base, adapter, parent, version, model and endpoint")
        if self.kind in ("version", "model", "endpoint") and self.at is None:
            raise ValueError(f"kind {self.kind} needs at")
        if self.kind in ("base", "parent") and self.at is not None:
            raise ValueError(f"kind {self.kind} is known by this configuration; at belongs to the other kinds")
        if self.kind == "endpoint" and self.model is None:
            raise ValueError("kind endpoint needs model, the name that the endpoint knows it by")
        return self


Metric = Literal["accuracy", "token_f1", "rouge_l", "chrf", "pass_at_k", "json_valid", "json_fields", "tool_calls"]
Perturbation = Literal["typos", "upper", "lower", "polite", "punctuation"]


class PassAt(Block):
    """Samples of each row for pass@k; samples null draws none."""

    samples: Count | None
    k: list[Count] = Field(min_length=1)
    temperature: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _enough_samples(self) -> "PassAt":
        if self.samples is not None and max(self.k) > self.samples:
            raise ValueError(f"k: {max(self.k)} is over samples, {self.samples}")
        return self


class Calibration(Block):
    """How sure a subject is, and the temperature that is fitted on validation rows.

    Labels are weighed on a sample of `rows` held-out rows; null weighs them on all.
    """

    confidence: Literal["auto", "labels", "answer", "verbalised", "none"]
    rows: Count | None
    validation_rows: Count
    bins: Annotated[int, Field(ge=2)]


class Robustness(Block):
    """How many held-out rows are asked again in other words' clothes, and how; rows null asks none."""

    rows: Count | None
    kinds: list[Perturbation] = Field(min_length=1)


class RedTeam(Block):
    """How many held-out rows each attack is wrapped around; null leaves the red team out."""

    wraps: Count | None


class Cost(Block):
    """How many held-out rows are asked one at a time to measure latency; null asks none."""

    rows: Count | None


class Faithfulness(Block):
    """Share of a claim's words that a passage must hold to support it, where no judge is asked."""

    threshold: Annotated[float, Field(gt=0, le=1)]


class Judge(EndpointFields):
    """A language model that compares two answers, both ways round; `at` null asks none. `rows` are sampled."""

    rows: Count
    prompt: Text
    claims_prompt: Text


class Slices(Block):
    """Columns of the rows, or of what `keep` kept, by whose values accuracy is told apart."""

    columns: list[Text]
    min_rows: Count


class Harness(Block):
    """Tasks of the lm-evaluation-harness.

    `data` maps a task to files that take the place of its Hub dataset, by split; `include_path` is a folder with
    tasks of one's own.
    """

    tasks: list[Text]
    num_fewshot: Length | None
    limit: Count | None
    chat_template: bool
    include_path: Text | None
    data: dict[str, dict[str, Text]]


class Evaluate(Block):
    """Held-out evaluation of several subjects on the same rows."""

    rows: Text | None
    adapter: Text | None
    subjects: dict[str, Subject] = Field(min_length=1)
    candidate: Text
    reference: Text
    without_card: bool
    max_rows: Count | None
    max_new_tokens: Count
    resamples: Annotated[int, Field(ge=100)]
    metrics: Annotated[list[Metric], Field(min_length=1)] | None
    json_schema: Text | None
    pass_at: PassAt
    calibration: Calibration
    robustness: Robustness
    red_team: RedTeam
    cost: Cost
    faithfulness: Faithfulness
    judge: Judge
    slices: Slices
    harness: Harness
    worst: Count

    @model_validator(mode="after")
    def _names_subjects(self) -> "Evaluate":
        for field in ("candidate", "reference"):
            if (name := getattr(self, field)) not in self.subjects:
                raise ValueError(f"{field}: {name!r} is none of the subjects {', '.join(self.subjects)}")
        return self


class Compare(Block):
    """A leaderboard of past runs on one held-out set.

    `rows` is its digest (or the digest's beginning); null takes the rows of this configuration. `runs` are ids of
    evaluate's runs; null takes all that ended well.
    """

    rows: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None
    runs: list[Text] | None
    metric: Text


# --- the whole ----------------------------------------------------------------------------------


class Tracking(Block):
    """Where MLflow keeps runs; `uri` null is the SQLite store in the project folder.

    `patience_s` is how long a stage that is done waits for a server that is away.
    """

    uri: Text | None
    experiment: Text
    system_metrics: bool
    patience_s: Annotated[float, Field(ge=0)]


class Paths(Block):
    """Folders for products, relative to the project folder unless absolute."""

    rows: Text
    adapters: Text
    outputs: Text


class Config(Block):
    """The composed configuration; each stage reads the blocks that `pipelines.stages` lists for it."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    sweep_metric: Text | None
    reuse: bool
    resume: Text | None
    flow: list[Literal["prepare", "generate", "sft", "distill", "grpo", "evaluate", "package", "promote"]]
    tracking: Tracking
    paths: Paths
    source: SourceFields
    subject: SubjectFields
    task: Task
    model: Model
    adapter: Adapter
    compute: Compute
    optimizer: Optimizer
    gate: Gate
    engine: Engine
    prepare: Prepare
    sft: Sft
    grpo: Grpo
    teacher: Teacher
    generate: Generate
    distill: Distill
    verifier: Verifier
    evaluate: Evaluate
    package: Package
    promote: Promote
    rollback: Rollback
    serve: Serve
    deploy: Deploy
    export: Export
    reproduce: Reproduce
    lineage: Lineage
    compare: Compare
    plan: Plan
    job: Job

    def with_trainer(self, stage: str, settings: Mapping[str, object]) -> "Config":
        """The configuration with settings of a training stage's trainer changed."""
        block = getattr(self, stage)
        return self.model_copy(update={stage: block.model_copy(update={"trainer": {**block.trainer, **settings}})})

    @model_validator(mode="after")
    def _flow_is_a_way(self) -> "Config":
        whole = ("prepare", "generate", "sft", "distill", "grpo", "evaluate", "package", "promote")
        needed = {"prepare", "evaluate", "package", "promote"}
        if list(self.flow) != [stage for stage in whole if stage in self.flow] or not needed <= set(self.flow):
            ways = "prepare, then of generate, sft, distill and grpo what is to be run, then evaluate, package, promote"
            raise ValueError(f"flow: expected {ways}, in this order, got {', '.join(self.flow)}")
        if not {"sft", "distill", "grpo"} & set(self.flow):
            raise ValueError("flow: expected one of sft, distill and grpo, which make an adapter")
        for name, before in (("distill", {"sft"}), ("grpo", {"sft", "distill"})):
            stage: Distill | Grpo = getattr(self, name)
            alone = name in self.flow and not before & set(self.flow)
            if alone and stage.start == "adapter" and stage.adapter is None:
                raise ValueError(
                    f"flow: without {' or '.join(sorted(before))} before it, {name} needs "
                    f"{name}.start=base or {name}.adapter"
                )
        self._distils()
        if self.grpo.pass_rate.samples is not None and (self.task.environment or self.grpo.asynchronous):
            raise ValueError(
                "grpo.pass_rate.samples: episodes in an environment, and asynchronous training, have no pass rates "
                "beforehand; set it to null"
            )
        return self

    def _distils(self) -> None:
        """Raises ValueError where the flow's teacher, or what it wrote, would be missing."""
        learns = self.distill.method in FROM_GENERATED
        if "distill" in self.flow and learns and "generate" not in self.flow and self.distill.generated is None:
            raise ValueError(
                f"flow: distill.method {self.distill.method} needs generate before it, or distill.generated"
            )
        if "generate" in self.flow and not ("distill" in self.flow and learns):
            raise ValueError(
                "flow: generate is for distill with a method that learns from what it wrote: "
                + " or ".join(FROM_GENERATED)
            )
        if self.teacher.kind is None and ("generate" in self.flow or ("distill" in self.flow and not learns)):
            raise ValueError("teacher.kind: the flow has a teacher; set teacher.kind and teacher.at")
