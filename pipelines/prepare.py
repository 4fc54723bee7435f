"""sources -> rows: checked, cleaned, held apart from what is held out, with a record of all of it."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.config.paths import resolve
from pipelines.config.schema import Config, Source
from pipelines.dataset.read import content_digest
from pipelines.dataset.spool import Spool
from pipelines.errors import UserError
from pipelines.preparation import contaminated, intake, parts
from pipelines.preparation.duplicates import NearCopies, conflicts, remove_exact, with_groups
from pipelines.preparation.intake import Intake
from pipelines.preparation.length import tokenizer_digest
from pipelines.preparation.pass_rate import keep_in_band, sampler
from pipelines.preparation.pool import Pool
from pipelines.preparation.summary import begun, summarise
from pipelines.product import Product, file_hash
from pipelines.progress import say

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

INTAKE = "intake"  # the folder of what is on disk while the stage works
SUMMARY = "summary.json"
REPORT = "report.html"


def files(config: Config) -> dict[str, Any]:
    """What decides the rows beside the configuration; None for what can't be read, which `run` will report."""
    prepare, task = config.prepare, config.task
    labels = resolve(task.labels) if task.labels else None
    fixed = parts.fixed_product(prepare.heldout)
    return {
        "sources": {name: _content(name, source) for name, source in task.sources.items()},
        "labels": file_hash(labels) if labels and labels.is_file() else None,
        "benchmarks": contaminated.digests(prepare.contamination.benchmarks, config.source),
        "tokenizer": tokenizer_digest(config.model) if prepare.max_length else None,
        "fixed": fixed.digest if fixed else None,
        "sampler": sampler(config) if prepare.pass_rate.samples is not None else None,
    }


def _content(name: str, source: Source) -> str | None:
    with intake.named(name):
        return content_digest(source)


def check(config: Config, work: Path) -> None:
    """Reads every source and reports every defect, before a run is opened or anything heavy is imported.

    What was read stays in `work` for `run`. Raises DataError.
    """
    try:
        _take(config, work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def needs_store(config: Config) -> bool:
    """Whether a source is read from MLflow, so that nothing can be checked before its store is open."""
    sources = config.task.sources.values()
    return any(source.kind == "traces" or (source.rows or "").startswith("run:") for source in sources)


def _take(config: Config, work: Path) -> Intake:
    shutil.rmtree(work, ignore_errors=True)
    (work / INTAKE).mkdir(parents=True)
    return intake.take(config, work / INTAKE)


def is_current(config: Config, found: Product) -> bool:
    """Whether the sources can't have changed unseen: what a query or a store of traces gives may have."""
    return all(source.kind not in intake.UNHASHED or source.sha256 for source in config.task.sources.values())


def run(config: Config, inputs: dict[str, Product], work: Path, run: "Run") -> dict[str, Any]:
    """Prepares the rows into `work` and logs them; returns their counts and digests."""
    summary = prepare(config, work)
    for name, source in summary["sources"].items():
        digest = source["sha256"] or source["revision"] or ""
        run.input(name, _where(source), digest, source["split"])
    counts = {split: made["num_rows"] for split, made in summary["splits"].items()}
    run.metrics({f"rows/{split}": count for split, count in counts.items()} | _metrics(summary))
    run.file(work / SUMMARY)
    run.file(work / REPORT)
    say(f"  {', '.join(f'{count:,} {split}' for split, count in counts.items())} rows")
    return {
        "num_rows": counts,
        "digests": {split: made["digest"] for split, made in summary["splits"].items()},
        "contamination": summary["contamination"]["removed"],
        "licenses": sorted({source["license"] for source in summary["sources"].values()}),
    }


def prepare(config: Config, work: Path) -> dict[str, Any]:
    """Writes the splits, what was removed and quarantined, the summary and the report into `work`.

    The same sources, configuration and seed give the same bytes. Returns the summary. Raises DataError with every
    defect of the sources before anything else is written.
    """
    read = work / INTAKE / intake.RECORD
    taken = _take(config, work) if needs_store(config) or not read.exists() else intake.load(work / INTAKE)
    pool = Pool(Spool(work / INTAKE))
    pool.funnel = begun(taken)
    found = _clean(config, pool, work / INTAKE)
    if config.prepare.pass_rate.samples is not None:
        found["pass_rate"] = keep_in_band(config, pool)
    found["mixture"] = parts.mix(pool, config)
    _check_rows(pool, found)
    digests = parts.write(pool, work, config)
    summary = summarise(config, taken, pool, found, digests)
    for name in (intake.REMOVED, intake.QUARANTINE, contaminated.HITS):
        shutil.copyfile(work / INTAKE / name, work / name)
    (work / SUMMARY).write_text(json.dumps(summary, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    from pipelines.preparation.report import draw  # matplotlib and scipy: not before the sources are known to be sound

    (work / REPORT).write_text(draw(config, summary, work), encoding="utf-8")
    pool.spool.close()
    shutil.rmtree(work / INTAKE)
    _say(summary)
    return summary


def _clean(config: Config, pool: Pool, folder: Path) -> dict[str, Any]:
    """Duplicates, held-out rows, contamination and validation, in this order."""
    settings = config.prepare.duplicates
    parts.limit(pool, config)
    found: dict[str, Any] = {"duplicates": remove_exact(pool, settings.exact) | {"threshold": settings.threshold}}
    cluster = np.arange(len(pool.alive), dtype=np.int32)
    if settings.near != "off" and not contaminated.is_generated(config):  # of one template all are alike
        copies = NearCopies(pool, intake.signatures(config, folder), settings)
        found["duplicates"]["near"] = copies.remove()
        cluster = copies.clusters()
    found["duplicates"] |= conflicts(pool)
    cluster = with_groups(pool, cluster)
    fixed = parts.fixed_product(config.prepare.heldout)
    found["heldout"] = parts.hold_out(pool, config, cluster)
    found["contamination"] = contaminated.check(pool, config, fixed.file("heldout.jsonl") if fixed else None)
    parts.validate(pool, config, cluster)
    return found


def _check_rows(pool: Pool, found: dict[str, Any]) -> None:
    for split, flags in (("train", pool.trains), ("heldout", pool.heldout)):
        if not flags.any() and not (split == "heldout" and found["heldout"]["fixed"]):
            raise UserError(f"task.sources: no row is left for {split} after exclude, limit and cleaning")


def _where(source: dict[str, Any]) -> str:
    """The source as MLflow shows it."""
    if source["kind"] == "hub" and not resolve(source["place"]).is_dir():
        return f"https://huggingface.co/datasets/{source['place']}/tree/{source['revision']}"
    return str(resolve(source["place"])) if source["kind"] in ("path", "rows", "hub") else str(source["place"])


def _metrics(summary: dict[str, Any]) -> dict[str, float]:
    steps = {step["step"]: step["removed"] for step in summary["funnel"] if "removed" in step}
    counts = {f"prepare/{name.replace(' ', '_')}": float(count) for name, count in steps.items()}
    for name, against in summary["contamination"]["against"].items():
        counts |= {f"contamination/{name}/{size}gram": float(n) for size, n in against["ngrams"].items()}
        counts |= {f"contamination/{name}/{kind}": float(against[kind]) for kind in ("equal", "near", "removed")}
    return counts


def _say(summary: dict[str, Any]) -> None:
    for step in summary["funnel"]:
        if step.get("removed"):
            say(f"  {step['step']}: {step['removed']:,} rows out, {step['rows']:,} left")
