"""Before anything is loaded: what can't fit is refused with what would fit; what can is told in a line."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml

from pipelines.config.paths import CONF
from pipelines.config.schema import Adapter, Config
from pipelines.errors import UserError
from pipelines.planning.facts import Facts
from pipelines.planning.fitting import available, choose, fits
from pipelines.planning.memory import GIB, WORST_OVER, Job, predict
from pipelines.planning.setting import STAGES, facts_for, job_of, length_of
from pipelines.progress import say

SHORTEST = 256
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing")
Remedy = tuple[str, Config, float]


def check(stage: str, config: Config) -> None:
    """Looks at a training stage on a CUDA card of known memory; does nothing for others.

    Raises UserError where even a prediction that is too high by the plan's worst error is over the card's memory.
    """
    memory_gb = config.compute.memory_gb
    if stage not in STAGES or config.compute.device != "cuda" or memory_gb is None:
        return
    facts, job = facts_for(config), job_of(stage, config)
    memory, there = predict(facts, job), available(memory_gb)
    told = f"{stage}: {memory.total / GIB:.1f} GiB expected of {there / GIB:.1f} GiB on the card"
    if memory.total * (1 - WORST_OVER) <= there:
        risk = "" if memory.total <= there else ", which may be too much"
        say(f"  {told}{risk} ({memory.moment})")
        return
    ways = [text for text, _, _ in remedies(stage, config, facts, job)]
    offer = (
        f"; what would fit: {', or '.join(ways)}"
        if ways
        else "; no single card of conf/compute/ would hold it, see `python -m pipelines plan` for several"
    )
    raise UserError(f"compute.memory_gb: {told}, micro-batch {job.micro_batch} of {job.length:,} tokens{offer}")


def remedies(stage: str, config: Config, facts: Facts, job: Job) -> Iterator[Remedy]:
    """Overrides that make it fit, the least change first: each with its configuration and the card's memory."""
    memory_gb = config.compute.memory_gb or 0.0
    if found := _smaller(stage, config, facts, job, memory_gb):
        yield found
    if found := _shorter(stage, config, facts, job, memory_gb):
        yield found
    # Fused experts would stay in 16 bit, and some of these checkpoints can't be quantised again.
    if not facts.counts.experts and (found := _quantized(stage, config, memory_gb)):
        yield found
    if found := _larger_card(stage, config, memory_gb, ""):
        yield found
        return
    made = None if facts.counts.experts else _as_qlora(config)
    if made is not None and (found := _larger_card(stage, made, memory_gb, "adapter=qlora ")):
        yield found


def _smaller(stage: str, config: Config, facts: Facts, job: Job, memory_gb: float) -> Remedy | None:
    """The same effective batch in smaller micro-batches, checkpointed."""
    accumulation = int(getattr(config, stage).trainer.get("gradient_accumulation_steps") or 1)
    effective = job.micro_batch * accumulation
    for checkpointing in dict.fromkeys((job.checkpointing, True)):
        for micro_batch in (n for n in range(job.micro_batch, 0, -1) if effective % n == 0):
            if not fits(facts, replace(job, micro_batch=micro_batch, checkpointing=checkpointing), memory_gb):
                continue
            changed = {
                "per_device_train_batch_size": micro_batch,
                "gradient_accumulation_steps": effective // micro_batch,
            }
            if checkpointing != job.checkpointing:
                changed["gradient_checkpointing"] = True
            text = " ".join(f"{stage}.trainer.{name}={str(value).lower()}" for name, value in changed.items())
            made = config.with_trainer(stage, changed)
            return (text, made, memory_gb) if fits(facts, job_of(stage, made), memory_gb) else None
    return None


def _shorter(stage: str, config: Config, facts: Facts, job: Job, memory_gb: float) -> Remedy | None:
    """A shorter sequence, by powers of two."""
    name = "max_completion_length" if stage == "grpo" else "max_length"
    if name not in getattr(config, stage).trainer or config.plan.sequence_length is not None:
        return None
    length = 1 << (length_of(stage, config) - 1).bit_length() - 1
    while length >= SHORTEST:
        made = config.with_trainer(stage, {name: length})
        if fits(facts, job_of(stage, made), memory_gb):
            return f"{stage}.trainer.{name}={length}", made, memory_gb
        length //= 2
    return None


def _quantized(stage: str, config: Config, memory_gb: float) -> Remedy | None:
    """The shipped QLoRA instead of a 16-bit base."""
    made = _as_qlora(config)
    if made is None:
        return None
    return ("adapter=qlora", made, memory_gb) if fits(facts_for(made), job_of(stage, made), memory_gb) else None


def _as_qlora(config: Config) -> Config | None:
    if config.adapter.quantization is not None or config.adapter.method != "lora" or config.adapter.train_experts:
        return None
    values = yaml.safe_load((CONF / "adapter/qlora.yaml").read_text(encoding="utf-8"))
    targets = config.model.targets
    values["peft"] |= {"target_modules": targets.target_modules, "exclude_modules": targets.exclude_modules}
    return config.model_copy(update={"adapter": Adapter(**values)})


def _larger_card(stage: str, config: Config, memory_gb: float, also: str) -> Remedy | None:
    """The smallest larger machine of conf/compute/: as it is, or with the settings that plan.auto would choose."""
    facts = facts_for(config)
    machines = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / "compute").glob("*.yaml")]
    larger = [found for found in machines if (found.get("memory_gb") or 0.0) > memory_gb]
    for machine in sorted(larger, key=lambda found: float(found["memory_gb"])):
        made = _on_machine(stage, config, machine)
        size, job = float(machine["memory_gb"]), job_of(stage, made)
        text = f"{also}compute={machine['name']}"
        if fits(facts, job, size):
            return text, made, size
        if choose(facts, job, int(getattr(made, stage).trainer["gradient_accumulation_steps"]), size):
            return f"{text} plan.auto=true", made, size
    return None


def _on_machine(stage: str, config: Config, machine: Mapping[str, Any]) -> Config:
    own = {name: machine[name] for name in BATCH}
    if stage == "grpo":
        own["gradient_accumulation_steps"] = machine["rollout_accumulation_steps"]
    changed = {"memory_gb": machine["memory_gb"], "name": machine["name"]}
    compute = config.compute.model_copy(update=changed)
    return config.model_copy(update={"compute": compute}).with_trainer(stage, own)
