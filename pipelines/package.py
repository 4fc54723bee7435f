"""adapter + scores -> registered model version, loaded once and asked before it is registered."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.evaluation import record as table
from pipelines.policy.base import local_folder, template_switches
from pipelines.product import Product, digest_of, folder_files
from pipelines.progress import say
from pipelines.release.seal import DIGEST_TAG
from pipelines.tracking import registry
from pipelines.tracking.run import Run, finite
from pipelines.tracking.source import source_tags

PARITY_ROWS = 8


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Registers a version; returns its name, number and lineage."""
    adapter, scores = inputs["adapter"], inputs["scores"]
    if scores.about["adapter_digest"] != adapter.digest:
        raise UserError(f"package.scores: {scores.folder} judges another adapter than {adapter.folder}")
    answers = _first_answers(scores)
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    # What evaluate keeps in a file is without what differs with the machine's speed; a gate may ask for that too.
    metrics = work / "scores.json"
    metrics.write_text(json.dumps({"metrics": scores.about["metrics"]}, indent=2) + "\n", encoding="utf-8")
    files = {"adapter": adapter.folder, "scores": metrics}
    registry.write_model(folder, files, _settings(config, scores), answers[0][0])
    _check_parity(folder, answers)
    lineage = _lineage(config, adapter, scores, digest_of(folder_files(folder)))
    name = config.package.registered_model
    model_id, sealed = registry.log_model(run.id, name, folder, lineage)
    lineage |= {DIGEST_TAG: sealed}
    registry.log_metrics(model_id, finite(scores.about["metrics"]), scores.about["heldout"])
    version = registry.register(name, model_id, run.id, lineage | _headline(scores))
    registry.point(name, "candidate", version.number)
    shutil.rmtree(folder)
    say(f"  registered {version.uri} (alias candidate)")
    made = {"name": name, "version": version.number, "model_id": model_id, "lineage": lineage}
    (work / "version.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return made


def is_current(config: Config, found: Product) -> bool:
    """Whether the registry still holds the version."""
    return registry.exists(found.about["name"], found.about["version"])


def _settings(config: Config, scores: Product) -> dict[str, Any]:
    """What the registered model needs to load its base and to answer as it was evaluated.

    `temperature` is the one that calibrates its confidence, None where none was fitted.
    """
    folder = local_folder(config.model)
    model = config.model.model_copy(update={"id": str(folder) if folder else config.model.id})
    return {
        "name": config.package.registered_model,
        "model": model.model_dump(),
        "adapter": config.adapter.model_dump(),
        "compute": config.compute.model_dump(),
        "template": template_switches(config.model),
        "max_new_tokens": config.evaluate.max_new_tokens,
        "temperature": scores.about["temperature"],
    }


def _first_answers(scores: Product) -> list[tuple[list[dict[str, Any]], str, str]]:
    """Prompt, answer and row of the candidate's first held-out rows."""
    records, _ = table.read(scores.file("answers.parquet"))
    found = table.of(records, table.HELDOUT, scores.about["candidate"])[:PARITY_ROWS]
    return [(json.loads(record.prompt), str(record.answer), record.row_id) for record in found]


def _check_parity(folder: Path, answers: Sequence[tuple[list[dict[str, Any]], str, str]]) -> None:
    """The written model, loaded as a server would load it, answers as the evaluated adapter did."""
    served = registry.answer(folder, [prompt for prompt, _, _ in answers])
    for (_, evaluated, row_id), text in zip(answers, served, strict=True):
        if text != evaluated:
            raise RuntimeError(f"row {row_id}: evaluated answer {evaluated!r}, packaged model answers {text!r}")


def _lineage(config: Config, adapter: Product, scores: Product, model_digest: str) -> dict[str, str]:
    """What the version was made of, by content."""
    return {
        "base.id": config.model.id,
        "base.revision": str(config.model.revision),
        "base.license": config.model.license.id,
        "rows.digest": str(scores.about["rows_digest"]),
        "rows.licenses": ", ".join(sorted({source.license for source in config.task.sources.values()})),
        "adapter.digest": adapter.digest,
        "adapter.stage": str(adapter.made_by["stage"]),
        "adapter.parent": str((adapter.about.get("parent") or {}).get("digest")),
        "adapter.run": adapter.run_id,
        "adapter.generated": str(adapter.about.get("generated")),
        "scores.digest": scores.digest,
        "scores.run": scores.run_id,
        "model.digest": model_digest,
        "config.digest": digest_of(config.model_dump()),
        "seed": str(config.seed),
        **_taught(adapter),
    } | {name: value for name, value in source_tags().items() if name.startswith(("git.", "lock."))}


def _taught(adapter: Product) -> dict[str, str]:
    """Whom the adapter learnt from, and under which licences."""
    teachers = adapter.about.get("teachers", [])
    if not teachers:
        return {}
    named = [str(teacher.get("digest") or teacher.get("endpoint")) for teacher in teachers]
    licenses = sorted({teacher["license"]["id"] for teacher in teachers})
    return {"teachers": ", ".join(named), "teachers.licenses": ", ".join(licenses)}


def _headline(scores: Product) -> dict[str, str]:
    """What a reader of the registry looks for first: metrics, where there are such, and against whom on which rows."""
    about = scores.about
    reference = about["reference"]
    told = {"heldout.digest": about["heldout"]["digest"], "reference": reference}
    against = {
        "correctness.accuracy_of_reference": about["subjects"][reference].get("eval/correctness/accuracy"),
        "correctness.accuracy_vs_reference_low": about["metrics"].get(f"eval/correctness/accuracy_vs_{reference}_low"),
    }
    told |= {name: f"{value:.4f}" for name, value in against.items() if value is not None}
    shown = ("correctness/accuracy", "refusal/decline_rate", "red_team/attack_success_rate", "calibration/temperature")
    metrics = about["metrics"]
    return told | {
        name.replace("/", "."): f"{metrics[f'eval/{name}']:.4f}" for name in shown if f"eval/{name}" in metrics
    }
