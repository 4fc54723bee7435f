"""rows + teacher -> rows: what the teacher answers to the training rows, kept where it is right."""

import contextlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.dataset import rows as files_of_rows
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows, write_rows
from pipelines.errors import UserError
from pipelines.evaluation.ask import chosen
from pipelines.generation import local, remote, yields
from pipelines.generation.attempt import Attempt
from pipelines.generation.episodes import Stage
from pipelines.generation.keeping import Sifted, sift
from pipelines.generation.opinion import FIELD as JUDGE
from pipelines.generation.opinion import Judge, Opinion
from pipelines.generation.report import html_report
from pipelines.generation.written import PROVENANCE, REJECTED, Author, Made, as_they_are, make, rejected, write_lines
from pipelines.product import Product
from pipelines.progress import meter, say
from pipelines.subjects.cache import Cache
from pipelines.subjects.local import LocalSubject
from pipelines.subjects.teacher import FIELD, Loaded, Teacher, find, loaded, subject
from pipelines.tasks import UNJUDGED
from pipelines.tracking.run import Run, finite
from pipelines.verification import verification

SPLIT = "train"
COPIED = ("validation.jsonl", "heldout.jsonl")
SUMMARY, REPORT = "summary.json", "report.html"
ANSWERS = "answers"  # the folder of batches that are whole


@dataclass(frozen=True)
class Asked:
    """The tries, why asking ended early, and what was paid in this run."""

    attempts: list[Attempt]
    limited: str | None
    spent: float | None


def files(config: Config) -> dict[str, Any]:
    """What decides the rows beside configuration and inputs: the teacher, by content."""
    return find(config).record()


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Writes the generated rows into `work`; returns what their manifest says about them."""
    given = inputs["rows"]
    _check(config)
    judge = Judge(config.generate.judge) if config.generate.judge.at is not None else None
    teacher = find(config)
    rows = _rows(config, given)
    run.input(config.task.name, given.file(f"{SPLIT}.jsonl"), given.about["digests"][SPLIT], SPLIT)
    there = None if teacher.endpoint is not None else loaded(config, teacher)
    if config.generate.top_k is not None and there is not None:
        _check_same(config, there)
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        for endpoint in (teacher.endpoint, judge.endpoint if judge else None):
            if endpoint is not None:
                endpoint.cache = stack.enter_context(Cache(resolve(config.teacher.cache), f"{FIELD}.cache"))
        asked = _ask(config, teacher, there, rows, work)
        sifted = _sift(config, asked, rows, judge)
    author = Author.of(teacher.record(), config.generate.temperature)
    made = _made(config, rows, sifted, author)
    counts = yields.counted(sifted, made) | {"num_sampled": len(rows)}
    spent = [value for value in (asked.spent, judge.endpoint.spent if judge else None) if value is not None]
    counts |= yields.costs(counts, sum(spent) if spent else None, time.perf_counter() - begun)
    _check_made(made, asked, counts)
    about = _about(config, given, teacher, author, made) | {"generated": counts, "limited": asked.limited}
    _write(work, given, made, sifted, {row.id: row for row in rows})
    if config.generate.top_k is not None and there is not None:
        about["logits"] = _stored(config, there, made.rows, work)
    _report(config, about, sifted, rows, work)
    run.metrics(finite(yields.metrics(counts)))
    for name in (REPORT, REJECTED):
        run.file(work / name, "generate")
    shutil.rmtree(work / ANSWERS, ignore_errors=True)
    _say(counts, asked.limited)
    return about


def _check(config: Config) -> None:
    """Raises UserError for what can't be, before anything is loaded or paid."""
    settings, task = config.generate, config.task
    if settings.top_k is not None and config.teacher.kind == "endpoint":
        raise UserError(
            "generate.top_k: an endpoint tells its words, not its distributions; set it to null, or name a teacher to "
            "load with teacher.kind"
        )
    if settings.answers is not None and settings.keep.verified and task.verify == UNJUDGED:
        raise UserError(
            f"generate.keep.verified: task {task.name} has no verify that could say what is right; set it to false, "
            "and generate.judge to have answers looked at"
        )
    Stage.of(task)


def _rows(config: Config, given: Product) -> list[Row]:
    """The training rows, or a seeded sample of them."""
    place = given.file(f"{SPLIT}.jsonl")
    found = read_rows(place)
    if not found:
        raise UserError(f"{place}: no rows; generate needs some to ask")
    limit = config.generate.limit
    return found if limit is None else chosen(found, limit, f"generate {config.seed}")


def _check_same(config: Config, there: Loaded) -> None:
    """Stored distributions are over the teacher's tokens: the student's have to be the same."""
    from pipelines.policy.base import load_tokenizer, template_switches
    from pipelines.policy.stored_logits import check_worth
    from pipelines.policy.vocabulary import template_difference, vocabulary_difference

    tokenizer = load_tokenizer(config.model)
    difference = vocabulary_difference(tokenizer, there.tokenizer) or template_difference(
        tokenizer, template_switches(config.model), there.tokenizer, there.template
    )
    if difference:
        raise UserError(
            f"generate.top_k: {config.model.name} can't learn from distributions of a teacher that writes with other "
            f"tokens: {difference}; set generate.top_k=null and generate.answers, and learn from its words"
        )
    check_worth(config.generate.top_k or 1, there.model.config.get_text_config().vocab_size)


def _ask(config: Config, teacher: Teacher, there: Loaded | None, rows: Sequence[Row], work: Path) -> Asked:
    tries = config.generate.answers
    if tries is None:
        return Asked([], None, None)
    endpoint = teacher.endpoint
    with meter("tries of the teacher", len(rows) * tries, "tries") as shown:
        if endpoint is None:
            asked = subject(config, teacher, there)
            if not isinstance(asked, LocalSubject):
                raise AssertionError("a teacher that is loaded is asked here")
            return Asked(local.attempts(config, asked, rows, work / ANSWERS, shown.advance), None, None)
        found = remote.attempts(config, endpoint, rows, shown.advance)
    unasked = sum(one.unasked for one in found)
    limited = f"{endpoint.field}.spending_limit of ${endpoint.spending.limit:g} reached" if unasked else None
    return Asked(found, limited, endpoint.spent if endpoint.fields.price_in is not None else None)


def _sift(config: Config, asked: Asked, rows: Sequence[Row], judge: Judge | None) -> list[Sifted]:
    keep = config.generate.keep
    with contextlib.ExitStack() as stack:
        verified = None
        if asked.attempts and keep.verified:
            verified = stack.enter_context(verification(config.task, config.verifier))

        def opinions(pairs: Sequence[tuple[str, str]]) -> list[Opinion]:
            if judge is None:
                raise AssertionError("nobody is asked where there is no judge")
            with meter(f"opinions of {JUDGE}", len(pairs), "answers") as shown:
                return judge.opinions(pairs, shown.advance)

        by_id = {row.id: row for row in rows}
        return sift(asked.attempts, by_id, keep, verified, opinions if judge else None)


def _made(config: Config, rows: Sequence[Row], sifted: Sequence[Sifted], author: Author) -> Made:
    if config.generate.answers is None:
        return as_they_are(rows, author)
    return make(config.task, rows, sifted, config.generate.missing, author)


def _check_made(made: Made, asked: Asked, counts: Mapping[str, Any]) -> None:
    """Raises UserError where there is nothing to learn from."""
    told = ", ".join(f"{number:,} {reason}" for reason, number in counts["failures"].items())
    if not made.rows and not asked.attempts:
        raise UserError("generate.answers: no row has a completion of its own; set it, so that the teacher answers")
    if not made.rows or (asked.attempts and not counts["num_kept"]):
        raise UserError(f"generate: none of {counts['num_tries']:,} tries is kept: {told}")


def _about(config: Config, given: Product, teacher: Teacher, author: Author, made: Made) -> dict[str, Any]:
    """As the rows say it of themselves, with what is new."""
    settings = config.generate
    names = ("answers", "temperature", "max_new_tokens", "limit", "missing", "top_k")
    told = {name: getattr(settings, name) for name in names} | settings.keep.model_dump()
    record = teacher.record() | (teacher.endpoint.about if teacher.endpoint is not None else {})
    return {
        **given.about,
        "task": config.task.name,
        "environment": config.task.environment,
        "num_rows": {**given.about["num_rows"], SPLIT: len(made.rows)},
        "digests": {**given.about["digests"], SPLIT: files_of_rows.digest(made.rows)},
        "rows_digest": given.digest,
        "teacher": record,
        "author": author.name,
        "settings": told,
    }


def _write(work: Path, given: Product, made: Made, sifted: Sequence[Sifted], rows: Mapping[str, Row]) -> None:
    write_rows(work, SPLIT, made.rows)
    write_lines(work / PROVENANCE, made.provenance)
    write_lines(work / REJECTED, rejected(sifted, rows))
    for name in COPIED:
        if given.file(name).is_file():
            shutil.copyfile(given.file(name), work / name)
    if given.file(SUMMARY).is_file():  # what evaluate tells of the held-out rows
        found = json.loads(given.file(SUMMARY).read_text(encoding="utf-8"))["contamination"]
        (work / SUMMARY).write_text(json.dumps({"contamination": found}, ensure_ascii=False, indent=2) + "\n")


def _stored(config: Config, there: Loaded, rows: Sequence[Row], work: Path) -> dict[str, Any]:
    from pipelines.policy.stored_logits import FOLDER, store

    with meter("distributions of the teacher", len(rows), "rows") as shown:
        size, top_k = config.compute.eval_batch_size, config.generate.top_k or 1
        told: dict[str, Any] = store(there, rows, top_k, size, work / FOLDER, shown.advance)
    return told


def _report(
    config: Config, about: Mapping[str, Any], sifted: Sequence[Sifted], rows: Sequence[Row], work: Path
) -> None:
    plays = config.task.environment is not None
    page = html_report(about, sifted, {row.id: row for row in rows}, plays, about["limited"])
    (work / REPORT).write_text(page, encoding="utf-8")


def _say(counts: Mapping[str, Any], limited: str | None) -> None:
    if limited:
        say(f"  stopped early: {limited}; {counts['failures']['unasked']:,} of {counts['num_tries']:,} tries not asked")
    if counts["num_tries"]:
        told = ", ".join(f"{number:,} {reason}" for reason, number in counts["failures"].items())
        say(f"  {counts['num_kept']:,} of {counts['num_asked']:,} tries kept{f' ({told})' if told else ''}")
    rows = counts["rows"]
    say(f"  {counts['num_rows']:,} rows: {rows['taught']:,} taught, {rows['own']:,} with their own completion")
