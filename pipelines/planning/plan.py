"""The whole plan of a stage: the table, its assumptions and the configured machine's own figures, as plain values."""

from dataclasses import asdict
from typing import Any

from pipelines.config.schema import Config
from pipelines.planning.automatic import overrides
from pipelines.planning.facts import Facts
from pipelines.planning.fitting import WAYS, Row, available, choose, row
from pipelines.planning.memory import GIB, WORST_OVER, WORST_UNDER, Job, predict
from pipelines.planning.setting import facts_for, job_of, strategy_of, trainer_of
from pipelines.planning.speed import ASSUMPTION, cost, flops_per_token, nearest_card, recomputed

MILLION = 10**6


def planned(config: Config) -> dict[str, Any]:
    """The plan of `plan.stage`, as plan.json holds it. Sizes are GiB a card, speeds tokens a second of all cards."""
    stage, facts, job = config.plan.stage, facts_for(config), job_of(config.plan.stage, config)
    strategy, cards = strategy_of(config)
    ways = (strategy,) if cards > 1 else WAYS
    longest = config.model.context_length
    rows = [
        row(facts, job, size, number, ways, longest) for size in config.plan.memory_gb for number in config.plan.cards
    ]
    tokens = run_tokens(config, job)
    return {
        "stage": stage,
        "model": _model(config, facts),
        "adapter": {"name": config.adapter.name, "parameters": facts.trainable},
        "setting": _setting(job),
        "tokens": tokens,
        "flops_per_token": flops_per_token(facts, job.length, recomputed(job)),
        "checkpointing": {word: _checkpointing(facts, job, on) for word, on in (("on", True), ("off", False))},
        "rows": [_row(found, tokens, config.plan.price_per_gpu_hour) for found in rows],
        "configured": _configured(config, facts, job),
        "notes": notes(config, facts, job),
    }


def run_tokens(config: Config, job: Job) -> int:
    """Tokens whose cost is told: of the run, as far as the configuration knows them, or else a million."""
    trainer = trainer_of(config.plan.stage, config)
    if config.plan.tokens is not None:
        return config.plan.tokens
    steps = int(trainer.get("max_steps") or -1)
    if steps <= 0:
        return MILLION
    return steps * job.micro_batch * int(trainer.get("gradient_accumulation_steps") or 1) * job.length * job.cards


def _model(config: Config, facts: Facts) -> dict[str, Any]:
    counts = facts.counts
    return {
        "name": config.model.name,
        "total": counts.total,
        "active": counts.active,
        "experts": counts.experts,
        "quantizable": counts.linear,
        "embedding": counts.embedding,
        "head": counts.head,
        "kept": facts.kept,
    }


def _setting(job: Job) -> dict[str, Any]:
    found = asdict(job)
    found["offload"] = list(job.offload)
    found["quantization"] = None if job.quantization is None else job.quantization.model_dump()
    return found


def _checkpointing(facts: Facts, job: Job, on: bool) -> dict[str, float]:
    from dataclasses import replace

    memory = predict(facts, replace(job, checkpointing=on))
    return {"activations": memory.kept["activations"] / GIB, "total": memory.total / GIB}


def _row(found: Row, tokens: int, price: float | None) -> dict[str, Any]:
    hours = [tokens / speed / 3600 for speed in (found.speed.high, found.speed.low)]
    paid = None if price is None else list(cost(tokens, found.speed, found.cards, price))
    return {
        "memory_gb": found.memory_gb,
        "card": nearest_card(found.memory_gb)[0],
        "cards": found.cards,
        "strategy": found.strategy,
        "parts": {name: size / GIB for name, size in found.memory.parts().items()},
        "total": found.memory.total / GIB,
        "available": available(found.memory_gb) / GIB,
        "fits": found.fits,
        "largest_micro_batch": found.micro_batch,
        "longest_sequence": found.length,
        "tokens_per_second": [found.speed.low, found.speed.high],
        "hours": hours,
        "cost": paid,
    }


def _configured(config: Config, facts: Facts, job: Job) -> dict[str, Any] | None:
    """The configured card, and the settings that `plan.auto` would take on it; None where its memory isn't known."""
    memory_gb = config.compute.memory_gb
    if config.compute.device != "cuda" or memory_gb is None:
        return None
    accumulation = int(trainer_of(config.plan.stage, config).get("gradient_accumulation_steps") or 1)
    chosen = choose(facts, job, accumulation, memory_gb)
    memory = predict(facts, job)
    return {
        "compute": config.compute.name,
        "parts": {name: size / GIB for name, size in memory.parts().items()},
        "total": memory.total / GIB,
        "available": available(memory_gb) / GIB,
        "auto": overrides(config.plan.stage, chosen) if chosen else None,
    }


def notes(config: Config, facts: Facts, job: Job) -> list[str]:
    """What the figures assume, and what about this model is easily taken wrong."""
    counts, told = facts.counts, []
    if counts.experts:
        told.append(f"mixture of experts: {counts.total:,} parameters lie in memory, {counts.active:,} work on a token")
    if counts.experts and job.quantization is not None and not job.quantized_experts:
        told.append(
            f"4-bit loading leaves the {counts.experts:,} parameters of the fused experts in 16 bit "
            f"({2 * counts.experts / GIB:.1f} GiB): bitsandbytes reaches {counts.linear:,} of {counts.total:,}"
        )
    head = "TRL's fused head, in tiles" if job.logit_bytes is None else f"all logits, {job.logit_bytes:g} bytes each"
    told.append(f"loss over {head}; optimizer {job.optim}; memory of full sequences, {_mask(job)}")
    if config.plan.stage == "distill" and config.teacher.kind is not None:
        told.append("a teacher that is loaded on the same card is not counted")
    if trainer_of(config.plan.stage, config).get("use_vllm"):
        told.append("what vLLM takes of a card is not counted")
    told.append(f"speed: {ASSUMPTION}")
    told.append(
        f"against published and simulated peaks the plan is at most {WORST_OVER:.0%} over and {WORST_UNDER:.0%} under "
        "(benchmarks/plan.md); no GPU was measured"
    )
    return told


def _mask(job: Job) -> str:
    return "padded" if job.masked else "attention without a mask"
