"""Bytes of a training step on one card, part by part.

What counts is the largest of a step's moments: the loss, the backward pass through a layer, the optimizer's step and,
in reinforcement, generation. Weights, adapter, optimizer states and kept activations are there at all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipelines.config.block import Quantization
from pipelines.planning.facts import Counts, Facts

GIB = 2**30
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
TILE = (4096, 32768)  # of TRL's fused head, tokens and vocabulary (trl.kernels.chunked_logprob)
FUSED_BYTES = 8  # of each token and hidden value: its compacted copy, a float32 gradient, that in bfloat16
LIVE_WINDOW = 10**9  # parameters that ZeRO-3 keeps gathered at most (stage3_max_live_parameters)
BUCKET = 5 * 10**8  # parameters of a reduce bucket (DeepSpeed's default)
CONTEXT = 0.75 * GIB  # what CUDA, cuBLAS and the kernels' code take of a card: 0.5 to 1
SLACK = 0.075  # of all but the weights, for the allocator's rounding and gaps: 5 to 10 %
WORST_UNDER = 0.05  # how far predictions may lie under what is measured, and over: benchmarks/plan.md
WORST_OVER = 0.15
# States of an optimizer in bytes a parameter, for each byte of the parameter, or flat for 8-bit ones.
STATES = {"adamw": 2.0, "adam": 2.0, "lion": 1.0, "muon": 1.0, "sgd": 0.0, "adafactor": 0.02, "rmsprop": 1.0}
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


@dataclass(frozen=True)
class Job:
    """What decides the bytes of a step.

    `logit_bytes` are those of every token and word of the vocabulary in a loss over all logits; None is TRL's fused
    head. `packed_bytes` are those of a weight in another 4 bit than bitsandbytes', `unpacking_bytes` what it takes
    while it is used. `residual` is the width of the residual stream. `samples` sequences of `length` are generated at
    once.
    """

    micro_batch: int
    length: int
    checkpointing: bool
    dtype: str = "bfloat16"
    quantization: Quantization | None = None
    quantized_experts: bool = False
    every_n: int = 1  # of the layers one is checkpointed, the others keep what they need
    packed_bytes: float | None = None
    unpacking_bytes: float | None = None
    optim: str = "adamw_torch_fused"
    masked: bool = True  # whether attention gets a mask, as with padding under sdpa
    logit_bytes: float | None = None
    residual: int = 2
    unquantized_width: int | None = None
    adapter_width: int | None = None
    strategy: str = "ddp"
    cards: int = 1
    offload: tuple[str, ...] = ()
    samples: int = 0
    reference: bool = False
    bucket: int = BUCKET


@dataclass(frozen=True)
class Memory:
    """Bytes on one card by what they are for; `moments` are what comes on top of the rest at each moment."""

    kept: Mapping[str, float]
    moments: Mapping[str, float]
    overhead: float = field(default=0.0)

    @property
    def moment(self) -> str:
        """When most is needed."""
        return max(self.moments, key=lambda name: self.moments[name])

    @property
    def allocated(self) -> float:
        """What torch's allocator would report as its peak."""
        return sum(self.kept.values()) + self.moments[self.moment]

    @property
    def total(self) -> float:
        """What the card must have."""
        return self.allocated + self.overhead

    def parts(self) -> dict[str, float]:
        """Everything that adds up to the total."""
        return {**self.kept, self.moment: self.moments[self.moment], "CUDA and allocator": self.overhead}


def predict(facts: Facts, job: Job) -> Memory:
    """The peak of a step of `job`."""
    sharded = job.cards if job.strategy in ("zero3", "fsdp2") else 1
    weights = weight_bytes(facts.counts, job) / sharded
    if "param" in job.offload:
        weights = 0.0
    kept = {"weights": weights, **_trained(facts.trainable, job), "activations": _stored(facts, job)}
    moments = _moments(facts, job)
    if job.quantized_experts:
        # They are put into 4 bit once the base is loaded.
        loaded = weight_bytes(facts.counts, replace(job, quantized_experts=False))
        moments["loading, with the experts in 16 bit"] = max(0.0, loaded - sum(kept.values()))
    dynamic = sum(kept.values()) - weights + max(moments.values())
    return Memory(kept, moments, CONTEXT + SLACK * dynamic)


def weight_bytes(counts: Counts, job: Job) -> float:
    """The base model as it lies in memory, whole."""
    width = job.unquantized_width or WIDTH[job.dtype]
    if job.quantization is None:
        return float(WIDTH[job.dtype] * counts.total)
    packed = counts.linear + (counts.experts if job.quantized_experts else 0)
    each = job.packed_bytes or four_bit(job.quantization)
    return each * packed + width * (counts.total - packed)


def four_bit(quantization: Quantization) -> float:
    """Bytes of a 4-bit weight with its share of the scales.

    Blocks of 64 share a float32 scale; double quantisation keeps these in 8 bit, 256 of them to a float32
    (Dettmers et al. 2023, section 3).
    """
    return 0.5 + (1 / 64 + 4 / (64 * 256) if quantization.bnb_4bit_use_double_quant else 4 / 64)


def adapter_width(job: Job) -> int:
    """Bytes of an adapter's parameter: peft keeps float32, TRL bfloat16 over a quantised base, DeepSpeed a copy."""
    if job.adapter_width:
        return job.adapter_width
    half = job.quantization is not None or job.strategy.startswith("zero")
    return 2 if half and job.dtype != "float32" else 4


def _trained(trainable: int, job: Job) -> dict[str, float]:
    """Adapter, gradients and optimizer states of a card."""
    width, zero = adapter_width(job), job.strategy.startswith("zero")
    stage = int(job.strategy[-1]) if zero else 0
    shard = {
        name: job.cards if stage >= least else 1 for name, least in (("adapter", 3), ("gradients", 2), ("states", 1))
    }
    if job.strategy == "fsdp2":
        shard = dict.fromkeys(shard, job.cards)
    master = 4 if zero and width == 2 else 0
    states = 0.0 if "optimizer" in job.offload else master + state_bytes(job.optim, 4 if zero else width)
    buckets = 0.0
    if zero:
        buckets = 2.0 * width * min(trainable, job.bucket)
    elif job.strategy == "ddp" and job.cards > 1:
        buckets = float(width * trainable)
    copies = 2 if job.reference else 1
    return {
        "adapter": copies * width * trainable / shard["adapter"],
        "gradients": width * trainable / shard["gradients"] + buckets,
        "optimizer states": states * trainable / shard["states"],
    }


def state_bytes(optim: str, width: int) -> float:
    """Bytes that the optimizer of that name keeps of a parameter of `width` bytes."""
    name = optim.removeprefix("paged_").removeprefix("stable_")
    kind = next((kind for kind in STATES if name.startswith(kind)), "adamw")
    return STATES[kind] * (1 if "8bit" in name else width)


def _stored(facts: Facts, job: Job) -> float:
    """What the forward pass leaves: all of every layer, of those that are checkpointed only the input."""
    kept, counts = facts.activations, facts.counts
    tokens = job.micro_batch * job.length
    once = kept.fixed.at(job.micro_batch, job.length)
    checkpointed = -(-counts.layers // job.every_n) if job.checkpointing else 0
    whole = (counts.layers - checkpointed) * (_saved(facts, job) + _unpacked_experts(counts, job))
    return once + whole + checkpointed * tokens * counts.hidden * job.residual


def _unpacked_experts(counts: Counts, job: Job) -> float:
    """A layer's 4-bit experts taken out for its products, which autograd keeps for the backward pass."""
    return WIDTH[job.dtype] * counts.experts / counts.layers if job.quantized_experts else 0.0


def _saved(facts: Facts, job: Job) -> float:
    curve = facts.activations.saved
    if not job.masked:
        curve = type(curve)(curve.constant, curve.linear, 0.0)
    return curve.at(job.micro_batch, job.length) * (4 if job.dtype == "float32" else 2) / 2


def _moments(facts: Facts, job: Job) -> dict[str, float]:
    counts, tokens = facts.counts, job.micro_batch * job.length
    layer = facts.activations.extra.at(job.micro_batch, job.length)
    if job.checkpointing:
        layer += _saved(facts, job) + _unpacked_experts(counts, job)
    if job.quantization is not None:
        layer += (job.unpacking_bytes or WIDTH[job.dtype]) * counts.largest_linear  # a weight taken out of its 4 bit
    if job.logit_bytes is None:
        tile = min(tokens, TILE[0]) * min(counts.vocabulary, TILE[1])
        loss = float(FUSED_BYTES * tokens * counts.hidden + WIDTH[job.dtype] * tile)
    else:
        loss = job.logit_bytes * tokens * counts.vocabulary
    gathered = _gathered(counts, job)
    found = {"backward pass of a layer": layer + gathered, "logits and loss": loss + gathered}
    if job.strategy.startswith("zero"):
        # Activations are gone by then, but they are counted as kept: only what outweighs them shows.
        # Gradients are flattened, then converted to float32 (DeepSpeed's ZeRO stages 1 and 2).
        step = float(4 + adapter_width(job)) * facts.trainable / job.cards
        found["optimizer's step"] = max(0.0, step - _stored(facts, job))
    if job.samples:
        cache = job.samples * job.length * counts.kv_width * WIDTH[job.dtype]
        logits = 6.0 * job.samples * counts.vocabulary
        found["generation's KV cache"] = max(0.0, cache + logits + gathered - _stored(facts, job))
    return found


def _gathered(counts: Counts, job: Job) -> float:
    """Weights that a sharding strategy has whole on a card for a while."""
    each = weight_bytes(counts, job) / counts.total
    ends = WIDTH[job.dtype] * (counts.embedding + counts.head)
    if job.cards == 1 and not job.offload:
        return 0.0
    if job.strategy == "fsdp2":
        return 2 * counts.largest_layer * each + ends
    if job.strategy == "zero3" or "param" in job.offload:
        return max(min(2 * counts.largest_layer, LIVE_WINDOW) * each, counts.largest_layer * each) + ends
    return 0.0
