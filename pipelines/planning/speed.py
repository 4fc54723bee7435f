"""Arithmetic of a token, the speed to expect of a card, and what that costs."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.planning.facts import Facts
from pipelines.planning.memory import Job

# Dense bfloat16 matrix rates in TFLOP/s by the card's memory, as their makers state them.
CARDS: Mapping[float, tuple[str, float]] = {
    24: ("RTX 4090", 165.0),
    32: ("RTX 5090", 209.0),
    48: ("L40S", 362.0),
    80: ("H100 SXM", 989.0),
    141: ("H200", 989.0),
}
MFU = (0.25, 0.45)  # share of that rate which LoRA on long sequences reaches
FOUR_BIT = 0.9  # of that, where weights are taken out of 4 bit for every product
SHARDED = {"ddp": 1.0, "zero1": 1.0, "zero2": 0.97, "zero3": 0.8, "fsdp2": 0.85}
ASSUMPTION = (
    f"{MFU[0]:.0%} to {MFU[1]:.0%} of the card's stated bfloat16 rate, a tenth less over a 4-bit base; full sequences, "
    "no padding; several cards in one machine joined by NVLink"
)


@dataclass(frozen=True)
class Speed:
    """Tokens a second of all cards together, from and to."""

    low: float
    high: float


def flops_per_token(facts: Facts, length: int, again: float) -> float:
    """Of a training step with LoRA: twice the active matrix parameters forward and twice backward, no gradient of the
    frozen ones; six times the adapter's; causal attention; of the body the share `again` once more.

    Within 3 % of the figures that NeMo AutoModel publishes.
    """
    counts = facts.counts
    matrix = counts.active - counts.embedding + (0 if counts.head else counts.embedding)
    found = 4.0 * matrix + 6.0 * facts.trainable + 6.0 * counts.attention_width * length
    body = counts.active - counts.embedding - counts.head
    return found + again * (2.0 * body + 2.0 * counts.attention_width * length)


def recomputed(job: Job) -> float:
    """The share of the layers that the backward pass computes again."""
    return 1 / job.every_n if job.checkpointing else 0.0


def nearest_card(memory_gb: float) -> tuple[str, float]:
    """The card whose rate is assumed for one with that much memory: the largest that is no larger."""
    fitting = [size for size in CARDS if size <= memory_gb + 1]
    return CARDS[max(fitting, default=min(CARDS))]


def speed_of(flops: float, memory_gb: float, cards: int, strategy: str, quantized: bool) -> Speed:
    """Tokens a second to expect."""
    rate = nearest_card(memory_gb)[1] * 1e12 * cards * (SHARDED[strategy] if cards > 1 else 1.0)
    rate *= FOUR_BIT if quantized else 1.0
    return Speed(MFU[0] * rate / flops, MFU[1] * rate / flops)


def cost(tokens: float, speed: Speed, cards: int, price: float) -> tuple[float, float]:
    """From and to: what so many tokens cost at a price per hour of one card."""
    hours = (tokens / speed.high / 3600, tokens / speed.low / 3600)
    return hours[0] * cards * price, hours[1] * cards * price
