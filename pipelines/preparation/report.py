"""The report of a prepare: its summary with pictures, and rows as a model will see them."""

from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.dataset.pictures import Lengths
from pipelines.dataset.report import html_report
from pipelines.dataset.row import Row, question, text_of
from pipelines.dataset.rows import row_of
from pipelines.errors import Unreachable
from pipelines.policy import mask
from pipelines.policy.base import template_switches
from pipelines.preparation.intake import REMOVED, SPLITS
from pipelines.preparation.length import TokenLimit
from pipelines.preparation.pool import removed_sample
from pipelines.progress import say

REMOVED_SHOWN = 5  # of each reason


def draw(config: Config, summary: dict[str, Any], folder: Path) -> str:
    """The page, from the summary and the files that the stage wrote into `folder`."""
    settings = config.prepare
    samples = {split: _first(folder / f"{split}.jsonl", settings.report.sample) for split in SPLITS}
    limit = _limit(config)
    lengths = Lengths(
        unit="tokens" if limit else "characters",
        limit=settings.max_length if limit else None,
        by_split={split: _lengths(rows, limit) for split, rows in samples.items()},
        totals={split: made["num_rows"] for split, made in summary["splits"].items()},
    )
    shown = samples["train"][: settings.report.examples]
    examples = _examples(config, limit, shown) if limit else ""
    return html_report(summary, lengths, examples, removed_sample(folder / REMOVED, REMOVED_SHOWN))


def _limit(config: Config) -> TokenLimit | None:
    """What counts tokens; None, and a word about it, where lengths are unchecked or the tokenizer can't be had."""
    if config.prepare.max_length is None:
        return None
    limit = TokenLimit(config.model, config.prepare.max_length)
    try:
        limit.counts([])
    except Unreachable as error:
        say(f"  the report shows characters, not tokens, and no rendered rows: {error}")
        return None
    return limit


def _first(path: Path, count: int) -> list[Row]:
    """Rows are sorted by id, so the first of them are a random sample."""
    with path.open(encoding="utf-8") as lines:
        return [row_of(line) for line in islice(lines, count)]


def _lengths(rows: list[Row], limit: TokenLimit | None) -> list[int]:
    if limit is not None:
        return limit.counts(rows)
    return [len(question(row.prompt)) + sum(len(text_of(m)) for m in row.completion) for row in rows]


def _examples(config: Config, limit: TokenLimit, rows: list[Row]) -> str:
    encoded = mask.encode(limit.tokenizer, rows, template_switches(config.model), config.sft.loss)
    return mask.examples_html(limit.tokenizer, encoded)
