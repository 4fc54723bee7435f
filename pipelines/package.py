"""adapter + scores -> registered model version, loaded once and asked before it is registered."""

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy.base import local_folder, template_switches
from pipelines.product import Product, digest_of, folder_files
from pipelines.progress import say
from pipelines.tracking import registry
from pipelines.tracking.run import Run
from pipelines.tracking.source import source_tags

PARITY_ROWS = 8


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Registers a version; returns its name, number and lineage."""
    adapter, scores = inputs["adapter"], inputs["scores"]
    if scores.about["adapter_digest"] != adapter.digest:
        raise UserError(f"package.scores: {scores.folder} judges another adapter than {adapter.folder}")
    answers = _first_answers(scores.file("answers.jsonl"))
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    files = {"adapter": adapter.folder, "scores": scores.file("scores.json")}
    registry.write_model(folder, files, _settings(config), answers[0]["prompt"])
    _check_parity(folder, answers)
    lineage = _lineage(config, adapter, scores, digest_of(folder_files(folder)))
    name = config.package.registered_model
    model_id = registry.log_model(run.id, name, folder, lineage, scores.about["metrics"])
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


def _settings(config: Config) -> dict[str, Any]:
    """What the registered model needs to load its base and to answer as it was evaluated."""
    folder = local_folder(config.model)
    model = config.model.model_copy(update={"id": str(folder) if folder else config.model.id})
    return {
        "name": config.package.registered_model,
        "model": model.model_dump(),
        "adapter": config.adapter.model_dump(),
        "compute": config.compute.model_dump(),
        "template": template_switches(config.model),
        "max_new_tokens": config.evaluate.max_new_tokens,
    }


def _first_answers(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, PARITY_ROWS)]


def _check_parity(folder: Path, answers: list[dict[str, Any]]) -> None:
    """The written model, loaded as a server would load it, answers as the evaluated adapter did."""
    served = registry.answer(folder, [record["prompt"] for record in answers])
    for record, text in zip(answers, served, strict=True):
        if text != record["adapter"]:
            raise RuntimeError(
                f"row {record['row_id']}: evaluated answer {record['adapter']!r}, packaged model answers {text!r}"
            )


def _lineage(config: Config, adapter: Product, scores: Product, model_digest: str) -> dict[str, str]:
    """What the version was made of, by content."""
    return {
        "base.id": config.model.id,
        "base.revision": str(config.model.revision),
        "base.license": config.model.license.id,
        "rows.digest": str(scores.about["rows_digest"]),
        "rows.licenses": ", ".join(sorted({source.license for source in config.task.sources.values()})),
        "adapter.digest": adapter.digest,
        "adapter.run": adapter.run_id,
        "scores.digest": scores.digest,
        "scores.run": scores.run_id,
        "model.digest": model_digest,
        "config.digest": digest_of(config.model_dump()),
        "seed": str(config.seed),
    } | {name: value for name, value in source_tags().items() if name.startswith(("git.", "lock."))}


def _headline(scores: Product) -> dict[str, str]:
    shown = ("adapter/accuracy", "base/accuracy", "comparison/accuracy_difference_low", "adapter/decline_rate")
    return {name.replace("/", "."): f"{scores.about['metrics'][name]:.4f}" for name in shown}
