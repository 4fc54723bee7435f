"""adapter + scores -> registered model version: sound, the same in every form, with its papers, sealed."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config.compose import as_yaml
from pipelines.config.schema import Config
from pipelines.dataset.rows import read_rows
from pipelines.errors import Refused, UserError
from pipelines.evaluation import record as table
from pipelines.evaluation.record import Record
from pipelines.policy import base as bases
from pipelines.policy.parity import Prompt
from pipelines.policy.served import digests
from pipelines.policy.soundness import SETTINGS, WEIGHTS, check_adapter
from pipelines.product import Product, digest_of, folder_files
from pipelines.progress import say
from pipelines.release import loadable, papers, seal, verdicts
from pipelines.release.model_card import model_card
from pipelines.release.notices import notice, unattributed
from pipelines.release.papers import Made
from pipelines.tracking import registry
from pipelines.tracking.parity import Measured, measure
from pipelines.tracking.run import Run, ended_at, finite
from pipelines.tracking.source import LOCK, source_tags

RELEASE = "release"  # below artifacts/, the papers of a version


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Registers a version; returns its name, number and lineage.

    Raises UserError for an adapter that is none or that the scores don't judge, Refused where a form that
    `package.parity.require` names isn't the adapter as it was trained. Nothing is registered then.
    """
    adapter, scores = inputs["adapter"], inputs["scores"]
    if scores.about["adapter_digest"] != adapter.digest:
        raise UserError(f"package.scores: {scores.folder} judges another adapter than {adapter.folder}")
    check_adapter(config, adapter)
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    records = _records(scores)
    prompts = _prompts(config, scores, records)
    made: list[Made] = []

    def write() -> Path:
        made.append(_made(config, adapter, scores))
        _write(config, made[0], prompts, folder, work)
        return folder

    measured = measure(config, adapter, prompts, write)
    parity = _parity(adapter, measured)
    run.data(json.dumps(parity, indent=2) + "\n", "parity.json")
    _require(config, parity)
    _tell(parity)
    _write_papers(config, made[0], measured, records, folder)
    registered = _register(config, made[0], parity, folder, run)
    shutil.rmtree(folder)
    (work / "version.json").write_text(json.dumps(registered, indent=2) + "\n", encoding="utf-8")
    return registered


def is_current(config: Config, found: Product) -> bool:
    """Whether the registry still holds the version."""
    return registry.exists(found.about["name"], found.about["version"])


def _made(config: Config, adapter: Product, scores: Product) -> Made:
    rows, trained = papers.rows_of(adapter, scores)
    if rows is None:
        say(f"  the rows of {scores.folder} are gone: the version has no contamination report")
    tokenizer = bases.load_tokenizer_from(adapter.folder)
    made = Made(
        config=config,
        adapter=adapter,
        scores=scores,
        rows=rows,
        trained=trained,
        base_files=bases.files(config.model),
        digests=digests(adapter, tokenizer, bases.template_switches(config.model)),
        code=source_tags(),
        evaluated_at=str(scores.made_by.get("at") or ended_at(scores.run_id)),
    )
    for name in unattributed(made):
        say(f"  task.sources.{name}.attribution: its licence asks to name the source, and none is given")
    return made


def _records(scores: Product) -> list[Record]:
    """The candidate's answers to its held-out rows."""
    records, _ = table.read(scores.file("answers.parquet"))
    return table.of(records, table.HELDOUT, scores.about["candidate"])


def _prompts(config: Config, scores: Product, records: list[Record]) -> list[Prompt]:
    """The first held-out rows as the registered model is asked them."""
    place = Path(scores.about["heldout"]["place"])
    tools = {row.id: row.tools for row in read_rows(place)} if place.is_file() else {}
    # In an environment the answer is a whole transcript, of which a chat completion is the first turn.
    alone = config.task.environment is None
    return [
        Prompt(
            record.row_id, json.loads(record.prompt), tools.get(record.row_id), str(record.answer) if alone else None
        )
        for record in records[: config.package.parity.prompts]
    ]


def _write(config: Config, made: Made, prompts: list[Prompt], folder: Path, work: Path) -> None:
    """The model as a server loads it; what the forms say is written into it later."""
    # What evaluate keeps in a file is without what differs with the machine's speed; a gate may ask for that too.
    metrics, release = work / "scores.json", work / RELEASE
    evaluated = {"adapter": made.scores.about["adapter_digest"], "revision": str(config.model.revision)}
    told = {"metrics": made.scores.about["metrics"], "evaluated": evaluated}
    metrics.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(release, ignore_errors=True)
    release.mkdir()
    (release / "NOTICE.md").write_text(notice(made, bases.folder_of(config.model)), encoding="utf-8")
    (release / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
    if LOCK.exists():
        shutil.copyfile(LOCK, release / "requirements.lock")
    artifacts = {"adapter": made.adapter.folder, "scores": metrics, RELEASE: release}
    registry.write_model(folder, artifacts, _settings(made), prompts[0].messages)
    shutil.rmtree(release)


def _settings(made: Made) -> dict[str, Any]:
    """What the registered model needs to load its base and to answer as it was evaluated.

    `temperature` is the one that calibrates its confidence, None where none was fitted.
    """
    config = made.config
    folder = bases.local_folder(config.model)
    model = config.model.model_copy(update={"id": str(folder) if folder else config.model.id})
    return {
        "name": config.package.registered_model,
        "model": model.model_dump(),
        "adapter": config.adapter.model_dump(),
        "compute": config.compute.model_dump(),
        "template": bases.template_switches(config.model),
        "max_new_tokens": config.evaluate.max_new_tokens,
        "temperature": made.scores.about["temperature"],
        "base_files": dict(made.base_files),
        "digests": dict(made.digests),
    }


def _parity(adapter: Product, measured: Measured) -> dict[str, Any]:
    from safetensors import safe_open

    settings = json.loads(adapter.file(SETTINGS).read_text(encoding="utf-8"))
    with safe_open(adapter.file(WEIGHTS), framework="np") as weights:
        vllm = loadable.vllm(settings, list(weights.keys()))
    return {"passed": measured.passed, "forms": measured.forms, "serving": {"vllm": vllm}}


def _require(config: Config, parity: Mapping[str, Any]) -> None:
    """Raises Refused naming the first form that has to be the adapter and isn't."""
    for name, form in parity["forms"].items():
        if not form["passed"]:
            apart = form["max_logprob_difference"]
            told = (
                f"{name} ({form['note']}): {form['tokens_equal']} of {form['rows']} answers are equal, largest "
                f"difference of a log-probability {'unknown' if apart is None else f'{apart:.2g}'}, "
                f"allowed {form['tolerance']:g}"
            )
            if name in config.package.parity.require:
                raise Refused(f"package.parity: not registered: {told}")
            say(f"  parity: {told}")


def _tell(parity: Mapping[str, Any]) -> None:
    """What a reader of the terminal wants to know before a release: forms, and who can serve them."""
    forms = ", ".join(f"{name} {form['tokens_equal']}/{form['rows']}" for name, form in parity["forms"].items())
    vllm = parity["serving"]["vllm"]
    able = f"can load it, with --max-lora-rank {vllm['max_lora_rank']}" if vllm["loadable"] else "can't load it: "
    say(f"  equal answers: {forms}; vLLM {able}{vllm['why']}")


def _write_papers(config: Config, made: Made, measured: Measured, records: list[Record], folder: Path) -> None:
    release = folder / "artifacts" / RELEASE
    parity = _parity(made.adapter, measured)
    texts = {
        "README.md": model_card(made, config.package.registered_model, parity),
        "lineage.json": json.dumps(papers.lineage(made), indent=2, ensure_ascii=False) + "\n",
        "parity.json": json.dumps(parity, indent=2) + "\n",
        "answers.json": json.dumps(measured.answers, indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        (release / name).write_text(text, encoding="utf-8")
    verdicts.write(release / "verdicts.parquet", records)
    # Python leaves its compiled files where the code was run.
    for compiled in list(folder.rglob("__pycache__")):
        shutil.rmtree(compiled)


def _register(config: Config, made: Made, parity: Mapping[str, Any], folder: Path, run: Run) -> dict[str, Any]:
    name, scores = config.package.registered_model, made.scores
    lineage = papers.tags(made, parity) | {"model.digest": digest_of(folder_files(folder))}
    model_id, sealed = registry.log_model(run.id, name, folder, lineage)
    lineage |= {seal.DIGEST_TAG: sealed}
    registry.log_metrics(model_id, finite(scores.about["metrics"]), scores.about["heldout"])
    version = registry.register(name, model_id, run.id, lineage)
    registry.point(name, "candidate", version.number)
    say(f"  registered {version.uri} (alias candidate)")
    return {"name": name, "version": version.number, "model_id": model_id, "lineage": lineage}
