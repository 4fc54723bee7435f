"""What fits: on which card, how large a micro-batch, how long a sequence, and the settings to take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipelines.planning.facts import Facts
from pipelines.planning.memory import GIB, Job, Memory, predict
from pipelines.planning.setting import on_cards
from pipelines.planning.speed import Speed, flops_per_token, recomputed, speed_of

USABLE = 0.98  # of the gibibytes that a card is sold by
WAYS = ("ddp", "zero2", "fsdp2")  # tried in this order where the configuration doesn't choose
LARGEST_BATCH = 1024


def available(memory_gb: float) -> float:
    """Bytes that programs get of a card sold with `memory_gb`."""
    return USABLE * memory_gb * GIB


def fits(facts: Facts, job: Job, memory_gb: float) -> bool:
    """Whether the job's prediction is within the card."""
    return predict(facts, job).total <= available(memory_gb)


@dataclass(frozen=True)
class Row:
    """One machine of the table."""

    memory_gb: float
    cards: int
    strategy: str
    memory: Memory
    fits: bool
    micro_batch: int
    length: int
    speed: Speed


def row(facts: Facts, job: Job, memory_gb: float, cards: int, ways: tuple[str, ...], longest: int) -> Row:
    """The job on one machine, by the first way that fits, or else the one that comes nearest.

    `longest` is the model's context.
    """
    tried = [on_cards(job, cards, way) for way in (ways if cards > 1 else ("ddp",))]
    chosen = next((one for one in tried if fits(facts, one, memory_gb)), None)
    best = chosen or min(tried, key=lambda one: predict(facts, one).total)
    flops = flops_per_token(facts, best.length, recomputed(best))
    return Row(
        memory_gb=memory_gb,
        cards=cards,
        strategy=best.strategy if cards > 1 else "",
        memory=predict(facts, best),
        fits=chosen is not None,
        micro_batch=largest(lambda b: fits(facts, replace(best, micro_batch=b), memory_gb), LARGEST_BATCH),
        length=128
        * largest(lambda s: fits(facts, replace(best, micro_batch=1, length=128 * s), memory_gb), longest // 128),
        speed=speed_of(flops, memory_gb, cards, best.strategy, best.quantization is not None),
    )


def largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` for which it holds, which it does up to some number; 0 where for none."""
    low, high = 0, max(most, 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


@dataclass(frozen=True)
class Choice:
    """Micro-batch, accumulation and checkpointing for one machine; the product of the first two is kept."""

    micro_batch: int
    accumulation: int
    checkpointing: bool
    every_n: int = 1


# Whether and which layers are checkpointed, from the least to compute again: none, a quarter, half, all.
CHECKPOINTED = ((False, 1), (True, 4), (True, 2), (True, 1))


def choose(facts: Facts, job: Job, accumulation: int, memory_gb: float, may_skip: bool = True) -> Choice | None:
    """The fastest settings that fit with the same effective batch; None where none do.

    Without checkpointing a step takes a third less arithmetic, so any micro-batch without it goes before one with
    it, and with few layers checkpointed before one with many; among those the largest. `may_skip` false keeps
    checkpointing as it is.
    """
    effective = job.micro_batch * accumulation
    for checkpointing, every_n in CHECKPOINTED if may_skip else ((job.checkpointing, job.every_n),):
        for micro_batch in _divisors(effective):
            tried = replace(job, micro_batch=micro_batch, checkpointing=checkpointing, every_n=every_n)
            if fits(facts, tried, memory_gb):
                return Choice(micro_batch, effective // micro_batch, checkpointing, every_n)
    return None


def _divisors(number: int) -> Iterator[int]:
    return (one for one in range(number, 0, -1) if number % one == 0)
