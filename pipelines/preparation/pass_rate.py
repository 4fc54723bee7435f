"""Training rows kept by how often the current model answers them right.

A row that a model always or never gets right gives a policy gradient nothing to learn from: its group of samples has
no difference in reward (Yu et al. 2025, "DAPO", section 3.2, dynamic sampling).
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.policy.base import load_base, load_tokenizer, load_tokenizer_from, pin, template_switches
from pipelines.policy.template import render
from pipelines.preparation.intake import SPLITS
from pipelines.preparation.pool import Pool
from pipelines.product import Product, load
from pipelines.progress import meter
from pipelines.verification import Verification, verification

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
    model, tokenizer = _load(config)
    outside: dict[int, dict[str, Any]] = {}
    spread: Counter[int] = Counter()
    with (
        verification(config.task, config.verifier) as verified,
        meter("pass rates", int(train.sum()), "rows") as shown,
    ):
        for rows in pool.batches(train):
            records = [Row.from_dict(record) for record in pool.spool.records(rows)]
            counts = _passed(config, (model, tokenizer), verified, records, shown.advance)
            for row, (passed, judged) in zip(rows.tolist(), counts, strict=True):
                spread[passed] += 1
                if judged and not settings.low <= passed / judged <= settings.high:
                    outside[row] = {"reason": f"pass rate: {passed} of {judged}"}
    pool.remove(STEP, outside)
    failed = verified.counts.failed
    return {
        "samples": settings.samples,
        "low": settings.low,
        "high": settings.high,
        "rows_by_passed": {str(passed): spread[passed] for passed in sorted(spread)},
    } | ({"without_verdict": failed} if failed else {})


def _load(config: Config) -> tuple[Any, Any]:
    profile, adapter = pin(config.model), _adapter(config)
    base = load_base(profile, config.adapter, config.compute)
    if adapter is None:
        return base.eval(), load_tokenizer(profile)

    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(adapter.folder)).eval(), load_tokenizer_from(adapter.folder)


def _passed(
    config: Config, sampled: tuple[Any, Any], verified: Verification, rows: list[Row], done: Callable[[int], None]
) -> list[tuple[int, int]]:
    """How many samples of each row are right, and how many have a verdict."""
    from pipelines.policy.chat import Decoding, generate

    settings, (model, tokenizer) = config.prepare.pass_rate, sampled
    tools = [row.tools for row in rows]
    prompts = render(tokenizer, [row.prompt for row in rows], tools, template_switches(config.model), prompt=True)
    count = settings.samples or 1
    # Each batch of rows has a seed of its own, or all would draw the same numbers.
    decoding = Decoding(settings.max_new_tokens, settings.temperature, config.seed ^ int(rows[0].id, 16) & 0xFFFFFFFF)
    answers = generate(
        model, tokenizer, [p for p in prompts for _ in range(count)], decoding, config.compute.eval_batch_size
    )
    done(len(rows))
    outcomes = verified.check([answer.text for answer in answers], [row for row in rows for _ in range(count)])
    verdicts = [outcome.verdict for outcome in outcomes]
    by_row = [[v for v in verdicts[at : at + count] if v is not None] for at in range(0, len(verdicts), count)]
    return [(sum(verdict.correct for verdict in found), len(found)) for found in by_row]
