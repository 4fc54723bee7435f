"""rows (heldout) + subjects -> every subject's answers to the same rows, what follows from them, and a report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.evaluation import record as table
from pipelines.evaluation.findings import Findings, Setup, find
from pipelines.evaluation.heldout import Heldout, check_apart, read_heldout
from pipelines.evaluation.pictures import draw
from pipelines.evaluation.record import Record
from pipelines.evaluation.report import answers_table, page
from pipelines.product import Product, digest_of, file_hash, folder_files
from pipelines.progress import say
from pipelines.subjects.asking import Answers, inquire
from pipelines.subjects.confidence import resolved
from pipelines.subjects.harnessed import harness_records
from pipelines.subjects.inquiry import Inquiry, inquiry_of, judged_by
from pipelines.subjects.judging import Judging
from pipelines.subjects.opening import Planned, adapters_of, check_endpoints, identity, opened, plan
from pipelines.subjects.playing import in_environment
from pipelines.tracking import registry
from pipelines.tracking.run import Run, finite, started
from pipelines.tracking.source import source_tags

OWN_SUITES = {table.HELDOUT, table.VALIDATION, table.ROBUSTNESS, table.RED_TEAM, table.LATENCY, table.SAMPLES}
ANSWERS = "answers.parquet"
SCORES = "scores.json"
CLOCKED = "eval/cost/"  # differs with the machine's speed


def unneeded(config: Config) -> tuple[str, ...]:
    """The adapter of this configuration, where no subject is it or was there before it."""
    needing = [s for s in config.evaluate.subjects.values() if s.kind in ("adapter", "parent") and s.at is None]
    own = any(s.kind == "adapter" or not s.optional for s in needing)
    return () if own else ("adapter",)


def files(config: Config) -> dict[str, Any]:
    """What decides the scores beside configuration and inputs: the subjects, and the files that are read."""
    read = [config.task.card, *config.task.red_team, config.evaluate.json_schema, config.task.labels]
    read += [name for task in config.evaluate.harness.data.values() for name in task.values()]
    found = {name: resolve(name) for name in read if name}
    own_tasks = config.evaluate.harness.include_path
    return {
        "subjects": identity(config),
        "harness": folder_files(resolve(own_tasks)) if own_tasks else {},
        "files": {name: file_hash(path) for name, path in found.items() if path.is_file()},
    }


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Asks every subject, measures, writes the table and the report; returns the metrics and what they rest on."""
    heldout = read_heldout(config, inputs["rows"])
    planned, absent = plan(config, inputs.get("adapter"))
    check_apart(heldout, inputs["rows"], adapters_of(planned))
    place = inputs["rows"].file("heldout.jsonl")
    # An adapter that was trained from the base has no parent: nothing is missing.
    missing = {name: config.evaluate.subjects[name].at for name in absent if config.evaluate.subjects[name].at}
    notes = [f"{name}: {at} is not there, left out" for name, at in missing.items()]
    with judged_by(config) as verified:
        inquiry = inquiry_of(config, heldout, verified)
        run.input(config.task.name, place, heldout.digest, "heldout")
        for note in notes:
            say(f"  {note}")
        check_endpoints(planned)
        judging = Judging(config, inquiry.rows)
        answers = _ask(config, planned, inquiry)
    setup = _setup(config, heldout, inquiry, answers)
    setup.notes[:0] = notes
    records = _judged(judging, answers, setup)
    say(f"  {len(records):,} answers; measuring with {setup.resamples:,} resamples")
    findings = find(records, setup)
    metrics = {name: findings.metrics(name) for name in setup.subjects}
    _write(work, findings, metrics[setup.candidate])
    _log(config, findings, heldout, metrics, work, run)
    data = {"name": config.task.name, "digest": heldout.digest, "place": str(place)}
    _log_subjects(planned, findings, metrics, data)
    for line in _headline(findings):
        say(f"  {line}")
    return {
        "metrics": metrics[setup.candidate],
        "subjects": metrics,
        "about": setup.subjects,
        "candidate": setup.candidate,
        "reference": setup.reference,
        "temperature": setup.temperatures.get(setup.candidate),
        "adapter_digest": setup.subjects[setup.candidate].get("adapter digest"),
        "rows_digest": inputs["rows"].digest,
        "heldout": data,
        "num_rows": len(heldout.rows),
    }


def _ask(config: Config, planned: list[Planned], inquiry: Inquiry) -> dict[str, Answers]:
    """Every subject's answers, and what its harness tasks say."""
    kinds = {one.name: str(one.settings.kind) for one in planned}
    answers = {}
    for plain in opened(config, planned):
        subject = in_environment(plain, config.task)
        method = resolved(config.evaluate.calibration.confidence, inquiry.labels, kinds[subject.name])
        found = inquire(subject, inquiry, method, config.compute.device)
        records, notes = harness_records(config, subject)
        found.records.extend(records)
        found.told.notes.extend(notes)
        answers[subject.name] = found
    # The order in which they were loaded is of no interest to a reader.
    return {one.name: answers[one.name] for one in planned}


def _setup(config: Config, heldout: Heldout, inquiry: Inquiry, answers: Mapping[str, Answers]) -> Setup:
    settings = config.evaluate
    return Setup(
        task=config.task.name,
        rows_digest=heldout.digest,
        subjects={name: found.about for name, found in answers.items()},
        candidate=settings.candidate,
        reference=settings.reference,
        resamples=settings.resamples,
        seed=config.seed,
        pass_at=settings.pass_at.k if settings.pass_at.samples else [],
        bins=settings.calibration.bins,
        slices=settings.slices.columns,
        min_rows=settings.slices.min_rows,
        tasks=sorted({record.suite for found in answers.values() for record in found.records} - OWN_SUITES),
        options=list(inquiry.labels),
        clocks={name: found.clock for name, found in answers.items()},
        temperatures={name: found.told.temperature for name, found in answers.items() if found.told.temperature},
        confidence={name: found.told.method for name, found in answers.items()},
        notes=[*inquiry.notes, *(note for found in answers.values() for note in found.told.notes)],
    )


def _judged(judging: Judging, answers: Mapping[str, Answers], setup: Setup) -> list[Record]:
    """All records, with what passages and a judge say of the answers."""
    by_subject = judging.faithful({name: found.records for name, found in answers.items()})
    preferred = judging.preferred(by_subject[setup.candidate], by_subject[setup.reference])
    setup.judge.update(judging.about)
    setup.notes.extend(judging.notes)
    return [record for found in (*by_subject.values(), preferred) for record in found]


def _write(work: Path, findings: Findings, metrics: Mapping[str, float]) -> None:
    table.write(work / ANSWERS, findings.records, {"setup": findings.setup.as_json()})
    scores = {
        "heldout": findings.setup.rows_digest,
        "subjects": findings.setup.subjects,
        "answers": digest_of([[r.suite, r.subject, r.row_id, r.kind, r.answer, r.correct] for r in findings.records]),
        "metrics": {name: value for name, value in metrics.items() if not name.startswith(CLOCKED)},
    }
    (work / SCORES).write_text(json.dumps(scores, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _log(
    config: Config,
    findings: Findings,
    heldout: Heldout,
    metrics: Mapping[str, Mapping[str, float]],
    work: Path,
    run: Run,
) -> None:
    setup = findings.setup
    run.metrics(finite(metrics[setup.candidate]))
    run.tags(_tags(findings, setup.candidate))
    run.table(answers_table(findings), "evaluation/answers.json")
    run.file(work / ANSWERS, "evaluation")
    pictures = draw(findings, config.evaluate.worst)
    for name, picture in pictures.items():
        run.data(picture, f"evaluation/{name}.png")
    provenance = {"run": run.id, "held-out rows": setup.rows_digest, "seed": str(config.seed), **source_tags()}
    (work / "report.html").write_text(
        page(findings, pictures, heldout, provenance, config.evaluate.worst), encoding="utf-8"
    )
    run.file(work / "report.html", "evaluation")


def _tags(findings: Findings, subject: str) -> dict[str, str]:
    about = {f"eval.{name.replace(' ', '_')}": value for name, value in findings.setup.subjects[subject].items()}
    return {"eval.heldout": findings.setup.rows_digest, "eval.subject": subject, **about}


def _log_subjects(
    planned: list[Planned],
    findings: Findings,
    metrics: Mapping[str, Mapping[str, float]],
    data: Mapping[str, str],
) -> None:
    """A child run for each subject beside the candidate; a registered version's metrics go to its logged model too."""
    for one in planned:
        if one.version and (model_id := registry.logged_model(one.version)):
            registry.log_metrics(model_id, finite(metrics[one.name]), data)
        if one.name != findings.candidate:
            with started(one.name, {"stage": "subject", **_tags(findings, one.name)}) as child:
                child.metrics(finite(metrics[one.name]))


def _headline(findings: Findings) -> list[str]:
    """What a user sees first: each subject's pass rate with its latency, and the candidate's difference from it."""
    lines = []
    for name in findings.setup.subjects:
        accuracy, p50 = findings.value(name, "correctness/accuracy"), findings.value(name, "cost/latency_p50")
        told = [] if accuracy is None else [f"accuracy {accuracy.value:.1%} of {accuracy.num_rows:,} in-scope rows"]
        told += [] if p50 is None else [f"p50 {1000 * p50.value:.0f} ms an answer"]
        if (errors := findings.value(name, "correctness/num_errors")) and errors.value:
            told.append(f"{errors.value:.0f} errors")
        if compared := findings.comparisons.get(name, {}).get("correctness/accuracy"):
            gain = compared.difference
            told.append(f"{findings.candidate} {gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}]")
        lines.append(f"{name}: {', '.join(told)}")
    return lines
