"""rows (heldout) + adapter -> scores of base and adapter on the same rows, answers and a report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows
from pipelines.errors import UserError
from pipelines.evaluation import evidence as evidences
from pipelines.evaluation.answer import Answer, answers_table
from pipelines.evaluation.evidence import ADAPTER, BASE, Evidence
from pipelines.evaluation.pictures import draw
from pipelines.evaluation.report import html_report
from pipelines.policy.base import load_base, load_tokenizer_from, template_switches
from pipelines.policy.chat import Decoding, generate
from pipelines.policy.template import render
from pipelines.product import Product
from pipelines.progress import meter, say
from pipelines.tasks import resolve_verify
from pipelines.tracking.run import Run, finite


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Scores base and adapter on the held-out rows; returns the metrics and what they were made from."""
    rows_file = inputs["rows"].file("heldout.jsonl")
    rows = read_rows(rows_file)[: config.evaluate.max_rows]
    if not rows:
        raise UserError(f"{rows_file}: no rows; evaluate needs some to score")
    run.input(config.task.name, rows_file, inputs["rows"].about["digests"]["heldout"], "heldout")
    answers = _answers(config, rows, inputs["adapter"])
    evidence = evidences.gather(
        rows,
        answers,
        config.task.decline_label,
        config.evaluate.worst,
        config.evaluate.resamples,
        config.seed,
    )
    metrics = _metrics(evidence)
    _write(work, rows, answers, metrics)
    _log(config, inputs, evidence, metrics, run)
    say(f"  {_headline(evidence)}")
    return {
        "metrics": metrics,
        "adapter_digest": inputs["adapter"].digest,
        "rows_digest": inputs["rows"].digest,
        "num_rows": len(rows),
    }


def _answers(config: Config, rows: Sequence[Row], adapter: Product) -> dict[str, list[Answer]]:
    """Both subjects' answers from one copy of the base, the adapter switched off for the base's."""
    from peft import PeftModel

    base = load_base(config.model, config.adapter, config.compute)
    tokenizer = load_tokenizer_from(adapter.folder)
    model = PeftModel.from_pretrained(base, str(adapter.folder)).eval()
    tools = [row.tools for row in rows]
    prompts = render(tokenizer, [row.prompt for row in rows], tools, template_switches(config.model), prompt=True)
    answered = {ADAPTER: _subject(config, ADAPTER, model, tokenizer, rows, prompts)}
    with model.disable_adapter():
        answered[BASE] = _subject(config, BASE, model, tokenizer, rows, prompts)
    return {subject: answered[subject] for subject in (BASE, ADAPTER)}


def _subject(
    config: Config, subject: str, model: Any, tokenizer: Any, rows: Sequence[Row], prompts: list[list[int]]
) -> list[Answer]:
    verify = resolve_verify(config.task)
    with meter(f"answers of {subject}", len(rows), "rows") as shown:
        found = generate(
            model,
            tokenizer,
            prompts,
            Decoding(config.evaluate.max_new_tokens),
            config.compute.eval_batch_size,
            shown.advance,
        )
    verdicts = [verify(answer.text, row) for row, answer in zip(rows, found, strict=True)]
    return [
        Answer(row.id, answer.text, verdict.correct, verdict.parsed, answer.num_tokens, answer.finished)
        for row, answer, verdict in zip(rows, found, verdicts, strict=True)
    ]


def _metrics(evidence: Evidence) -> dict[str, float]:
    scores = {f"{who}/{name}": value for who, found in evidence.scores.items() for name, value in found.items()}
    return scores | {f"comparison/{name}": value for name, value in evidence.comparison.metrics().items()}


def _write(
    work: Path, rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]], metrics: Mapping[str, float]
) -> None:
    records = answers_table(rows, answers)
    lines = [
        json.dumps({**record, "prompt": row.prompt}, ensure_ascii=False)
        for row, record in zip(rows, records, strict=True)
    ]
    (work / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (work / "scores.json").write_text(json.dumps({"metrics": metrics}, indent=2) + "\n", encoding="utf-8")


def _log(
    config: Config, inputs: dict[str, Product], evidence: Evidence, metrics: Mapping[str, float], run: Run
) -> None:
    run.metrics(finite(metrics))
    run.table(answers_table(evidence.rows, evidence.answers), "evaluation/answers.json")
    pictures = draw(evidence)
    for name, picture in pictures.items():
        run.data(picture, f"evaluation/{name}.png")
    provenance = {
        "run": run.id,
        "base model": f"{config.model.id} ({config.model.revision})",
        "base licence": config.model.license.id,
        "adapter": f"{config.adapter.name}, {inputs['adapter'].digest}",
        "trained in run": inputs["adapter"].run_id,
        "rows": f"{config.task.name}, {inputs['rows'].digest}",
    }
    title = f"Held-out evaluation of {config.task.name}"
    run.data(
        html_report(evidence, pictures, title, provenance),
        "evaluation/report.html",
    )


def _headline(evidence: Evidence) -> str:
    gain = evidence.comparison.difference
    base, adapter = (evidence.scores[who]["accuracy"] for who in (BASE, ADAPTER))
    return (
        f"accuracy {base:.1%} -> {adapter:.1%}, difference {gain.value:+.1%} "
        f"[{gain.low:+.1%}, {gain.high:+.1%}] on {evidence.scores[BASE]['num_in_scope']:,.0f} in-scope rows"
    )
