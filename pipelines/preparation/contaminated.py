"""Rows for training against what they must not have seen: the held-out rows, and benchmark files."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Benchmark, Config, Contamination, Source, SourceFields
from pipelines.dataset.contamination import Match, NgramIndex
from pipelines.dataset.defects import Defects
from pipelines.dataset.near_copy import Near, NearIndex
from pipelines.dataset.normal import normalised, text_hash
from pipelines.dataset.read import content_digest, read_source
from pipelines.dataset.row import question
from pipelines.dataset.rows import read_rows
from pipelines.errors import DataError
from pipelines.preparation.pool import AT_ONCE, Pool
from pipelines.progress import meter

SHOWN = 10
HELDOUT = "heldout"
HITS = "contamination.jsonl"


@dataclass
class Against:
    """What was found against one set of protected texts."""

    num_protected: int
    ngrams: Counter[str] = field(default_factory=Counter)
    equal: int = 0
    near: int = 0
    removed: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def count(self, hit: dict[str, Any], removes: bool) -> None:
        """One row's hit; the first are kept as examples, those that decide before the others."""
        self.ngrams.update(hit["ngrams"].keys())
        self.equal += hit["found"] == "equal"
        self.near += hit["found"] == "near-duplicate"
        self.removed += removes and hit["decides"]
        if len(self.examples) == SHOWN and hit["decides"]:
            other = next((i for i, shown in enumerate(self.examples) if not shown["decides"]), None)
            if other is not None:
                del self.examples[other]
        if len(self.examples) < SHOWN:
            self.examples.append({**hit, "match": _match(hit)})


class _Protected:
    """Protected texts and the indexes over them."""

    def __init__(self, name: str, settings: Contamination, seed: int) -> None:
        self.name, self.settings = name, settings
        self.ngrams = NgramIndex(settings.ngrams)
        self.near = NearIndex(settings.threshold, seed) if settings.near else None
        self.asked: dict[int, int] = {}
        self.texts: list[str] = []

    def fill(self, texts: Iterator[str]) -> None:
        while batch := list(islice(texts, AT_ONCE)):
            asked = [normalised(text) for text in batch]
            self.ngrams.add(batch)
            if self.near is not None:
                self.near.add(asked)
            for row, text in enumerate(asked, len(self.texts)):
                self.asked.setdefault(text_hash(text), row)
            self.texts += batch

    def found(self, texts: Sequence[str]) -> Iterator[tuple[dict[int, Match], Near | None]]:
        """Of each text the n-grams that a protected one has as well, and the protected text that it is a copy of."""
        return zip(self.ngrams.matches(texts), self._copies([normalised(text) for text in texts]), strict=True)

    def _copies(self, asked: Sequence[str]) -> list[Near | None]:
        if self.near is not None:
            return self.near.matches(asked)
        rows = (self.asked.get(text_hash(text)) for text in asked)
        return [None if row is None else Near(row, 1.0) for row in rows]


def check(pool: Pool, config: Config, heldout: Path | None) -> dict[str, Any]:
    """Counts, lists and, by policy, removes contaminated rows. Raises DataError where the policy is to fail.

    A row counts as contaminated where it shares an n-gram of the decisive size with a protected text, asks the
    same, or is a near-copy of it; the other n-gram sizes are counted only. Where all sources are generated, words are
    shared because one program wrote them: only who asks the same is contaminated, the rest is counted. `heldout` is a
    file of held-out rows that takes the place of those in the pool. Every hit goes into `contamination.jsonl`.
    """
    settings = config.prepare.contamination
    protected, made = _protected(pool, config, heldout), is_generated(config)
    none = {str(size): 0 for size in settings.ngrams}
    found = {each.name: Against(len(each.texts), ngrams=Counter(none)) for each in protected}
    reasons: dict[int, dict[str, Any]] = {}
    with (pool.spool.folder / HITS).open("w", encoding="utf-8") as file:
        for row, hit in _hits(pool, protected):
            hit["decides"] = hit["decides"] and (hit["found"] == "equal" or not made)
            file.write(json.dumps(hit, ensure_ascii=False) + "\n")
            found[hit["against"]].count(hit, settings.policy == "remove")
            if hit["decides"]:
                reasons.setdefault(row, _reason(hit))
    _act(pool, settings, reasons)
    return {
        "policy": settings.policy,
        "decisive": settings.decisive,
        "threshold": settings.threshold,
        "removed": len(reasons) if settings.policy == "remove" else 0,
        "against": {name: vars(against) for name, against in found.items()},
    }


def is_generated(config: Config) -> bool:
    """Whether all rows come from generators."""
    return all(source.kind == "generate" for source in config.task.sources.values())


def _protected(pool: Pool, config: Config, heldout: Path | None) -> list[_Protected]:
    settings = config.prepare.contamination
    protected = [_Protected(name, settings, config.seed) for name in (HELDOUT, *settings.benchmarks)]
    protected[0].fill(_heldout_texts(pool, heldout))
    for each in protected[1:]:
        each.fill(benchmark_texts(settings.benchmarks[each.name], config.source))
    return protected


def _hits(pool: Pool, protected: Sequence[_Protected]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows for training with what each shares with one of the protected sets."""
    with meter("contamination", int(pool.trains.sum()), "rows") as shown:
        for rows in pool.batches(pool.trains):
            records = list(pool.spool.records(rows))
            texts = [question(record["prompt"]) for record in records]
            for each in protected:
                for row, record, (ngrams, near) in zip(rows.tolist(), records, each.found(texts), strict=True):
                    if ngrams or near:
                        yield row, _hit(each, record, ngrams, near)
            shown.advance(len(rows))


def _hit(each: _Protected, record: Mapping[str, Any], ngrams: Mapping[int, Match], near: Near | None) -> dict[str, Any]:
    asked = question(record["prompt"])
    if near is not None:
        kind = "equal" if normalised(each.texts[near.row]) == normalised(asked) else "near-duplicate"
        protected, similarity = each.texts[near.row], round(near.similarity, 3)
    else:
        kind = f"{max(ngrams)}-gram"
        protected, similarity = each.texts[ngrams[max(ngrams)].row], None
    return {
        "id": record["id"],
        "source": record["source"],
        "against": each.name,
        "found": kind,
        "decides": near is not None or each.settings.decisive in ngrams,
        "similarity": similarity,
        "ngrams": {str(size): match.text for size, match in ngrams.items()},
        "text": asked,
        "protected": protected,
    }


def _reason(hit: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "reason": f"contamination: {hit['found']} of {hit['against']}",
        "similarity": hit["similarity"],
        "protected": hit["protected"],
        "match": _match(hit),
    }


def _match(hit: Mapping[str, Any]) -> str | None:
    """The words shared, where they are what tells: those of the largest size."""
    return hit["ngrams"][hit["found"].removesuffix("-gram")] if hit["found"].endswith("-gram") else None


def _act(pool: Pool, settings: Contamination, reasons: dict[int, dict[str, Any]]) -> None:
    if settings.policy == "remove":
        pool.remove("contaminated", reasons)
    elif settings.policy == "fail" and reasons:
        rows = sorted(reasons)
        lines = [
            f"{record['source']}: {reasons[row]['reason']}: {reasons[row]['match'] or reasons[row]['protected']!r}"
            for row, record in zip(rows[:SHOWN], pool.spool.records(rows[:SHOWN]), strict=True)
        ]
        counted = "1 row for training is" if len(rows) == 1 else f"{len(rows):,} rows for training are"
        total = f"{counted} contaminated and prepare.contamination.policy is fail"
        raise DataError("\n".join([*lines, total]))


def _heldout_texts(pool: Pool, heldout: Path | None) -> Iterator[str]:
    if heldout is not None:
        yield from (question(row.prompt) for row in read_rows(heldout))
        return
    for rows in pool.batches(pool.heldout):
        yield from (question(record["prompt"]) for record in pool.spool.records(rows))


def benchmark_source(benchmark: Benchmark, source: SourceFields) -> Source:
    """A benchmark's file as a source, to be read like one."""
    given = {"path": benchmark.path, "prompt": benchmark.fields[0], "answer": benchmark.fields[-1]}
    return Source.model_validate(source.model_dump() | given)


def benchmark_texts(benchmark: Benchmark, source: SourceFields) -> Iterator[str]:
    """The questions of a benchmark file. Raises DataError with every defect of it."""
    defects = Defects(SHOWN)
    for record in read_source(benchmark_source(benchmark, source), defects, 2**30):
        values = [record.fields.get(name) for name in benchmark.fields]
        for wanted, value in zip(benchmark.fields, values, strict=True):
            if not isinstance(value, str):
                guess = did_you_mean(wanted, record.fields)
                defects.add(record.place, f"no text in field {wanted!r}{'' if wanted in record.fields else guess}")
        yield " ".join(value for value in values if isinstance(value, str))
    defects.raise_if_any()


def digests(benchmarks: Mapping[str, Benchmark], source: SourceFields) -> dict[str, str | None]:
    """What each benchmark file holds, in one word."""
    return {name: content_digest(benchmark_source(benchmark, source)) for name, benchmark in benchmarks.items()}
