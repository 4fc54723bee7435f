"""Training rows kept by how often the current model answers them right: rows worth reinforcing."""

from collections import Counter
from typing import Any

from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.policy.base import (
    load_adapter,
    load_base,
    load_tokenizer,
    load_tokenizer_from,
    pin,
    template_switches,
)
from pipelines.preparation.intake import SPLITS
from pipelines.preparation.pool import Pool
from pipelines.product import Product, load
from pipelines.progress import meter
from pipelines.rewards.pass_rates import Sampler, in_band
from pipelines.verification import verification

STEP = "outside the band of pass rates"


def sampler(config: Config) -> dict[str, Any]:
    """What decides the samples beside `prepare.pass_rate`: the pinned base and the adapter's digest."""
    adapter = _adapter(config)
    return {
        "model": pin(config.model).model_dump(),
        "adapter": adapter.digest if adapter else None,
        "quantization": config.adapter.model_dump()["quantization"],
        "compute": config.compute.model_dump(),
    }


def _adapter(config: Config) -> Product | None:
    given = config.prepare.pass_rate.adapter
    if given is None:
        return None
    found = load(resolve(given))
    if found.kind != "adapter":
        raise UserError(f"prepare.pass_rate.adapter: expected a folder of kind adapter, {given} is {found.kind}")
    return found


def keep_in_band(config: Config, pool: Pool) -> dict[str, Any]:
    """Samples every training row's answer, removes rows outside the band, returns how the rates are spread.

    Rates are of the answers that have a verdict; a row none of whose answers has one stays. Raises UserError where too
    many have none.
    """
    settings = config.prepare.pass_rate
    train = pool.alive & (pool.split == SPLITS.index("train"))
    sampler = _sampler(config)
    outside: dict[int, dict[str, Any]] = {}
    spread: Counter[int] = Counter()
    with (
        verification(config.task, config.verifier) as verified,
        meter("pass rates", int(train.sum()), "rows") as shown,
    ):
        for rows in pool.batches(train):
            records = [Row.from_dict(record) for record in pool.spool.records(rows)]
            counts = sampler.passed(records, verified, shown.advance)
            for row, (passed, judged) in zip(rows.tolist(), counts, strict=True):
                spread[passed] += 1
                if not in_band((passed, judged), settings.low, settings.high):
                    outside[row] = {"reason": f"pass rate: {passed} of {judged}"}
    pool.remove(STEP, outside)
    failed = verified.counts.failed
    return {
        "samples": settings.samples,
        "low": settings.low,
        "high": settings.high,
        "rows_by_passed": {str(passed): spread[passed] for passed in sorted(spread)},
    } | ({"without_verdict": failed} if failed else {})


def _sampler(config: Config) -> Sampler:
    settings, (model, tokenizer) = config.prepare.pass_rate, _load(config)
    return Sampler(
        model=model,
        tokenizer=tokenizer,
        template=template_switches(config.model),
        batch_size=config.compute.eval_batch_size,
        count=settings.samples or 1,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=config.seed,
    )


def _load(config: Config) -> tuple[Any, Any]:
    profile, adapter = pin(config.model), _adapter(config)
    base = load_base(profile, config.adapter, config.compute)
    if adapter is None:
        return base.eval(), load_tokenizer(profile)

    return load_adapter(base, adapter.folder).eval(), load_tokenizer_from(adapter.folder, profile)
