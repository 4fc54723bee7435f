"""version + rows -> the version in other forms, each judged again beside the adapter."""

import gc
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.config.schema import Adapter, Compute, Config, Model
from pipelines.dataset.row import Row
from pipelines.dataset.rows import read_rows
from pipelines.errors import UserError
from pipelines.evaluation.ask import Judged, chosen
from pipelines.evaluation.heldout import Heldout, check_apart, read_heldout
from pipelines.exporting import forms, identity, papers, table
from pipelines.exporting.answering import ProgramSubject
from pipelines.exporting.forms import Making
from pipelines.exporting.judging import Answered, Asked, Standing, answers, asked_of, standing
from pipelines.exporting.materials import Materials
from pipelines.exporting.materials import Version as Exported
from pipelines.exporting.merging import stored_dtype
from pipelines.policy.base import local_folder
from pipelines.policy.served import BASE_FOLDER, Served, completed, load_served
from pipelines.policy.template import ends_of, render
from pipelines.product import Product, discard
from pipelines.progress import say
from pipelines.subjects.inquiry import judged_by
from pipelines.subjects.local import LocalSubject
from pipelines.subjects.subject import Question
from pipelines.tracking import registry
from pipelines.tracking.registry import Version
from pipelines.tracking.run import Run

ADAPTER = "adapter"


def unneeded(config: Config) -> tuple[str, ...]:
    """A model named by URI needs no version of this configuration."""
    return ("version",) if config.export.model else ()


def files(config: Config) -> dict[str, Any]:
    """What decides the forms beside configuration and inputs: which version a URI means now."""
    return {"version": registry.find(config.export.model, "export.model").digest} if config.export.model else {}


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Writes every form into a folder of its own, judges it, and tells the registry how it stands."""
    made = inputs["version"].about if "version" in inputs else None
    version = registry.named(config.export.model, "export.model", made)
    adapter, settings = registry.contents(version)
    config = _as_trained(config, settings)
    heldout = read_heldout(config, inputs["rows"])
    check_apart(heldout, inputs["rows"], {version.uri: adapter})
    run.input(config.task.name, inputs["rows"].file("heldout.jsonl"), heldout.digest, "heldout")
    discard(work)
    with judged_by(config) as verified, tempfile.TemporaryDirectory(dir=work.parent) as temporary:
        served = load_served(settings, adapter)
        asked = asked_of(config, heldout.rows, Judged(config.task, verified), served.max_new_tokens)
        reference = _Reference(config, served, asked)
        exported = Exported(settings, adapter, served.tokenizer)
        materials = Materials(exported, config.export.dtype or stored_dtype(config.model), Path(temporary))
        ends = ends_of(served.model.generation_config, served.tokenizer)
        rows = _calibration(config, served, inputs["rows"])
        making = Making(config, materials, rows, ends, served.max_new_tokens)
        standings = [reference.standing(adapter)]
        for form in config.export.forms:
            standings.append(_form(form, making, reference, version, work))
            say(f"  {form}: {standings[-1].size / 1e6:,.1f} MB")
            gc.collect()
    return _told(config, standings, version, heldout, work, run)


class _Reference:
    """The adapter: its answers to all rows, and its greedy tokens on some."""

    def __init__(self, config: Config, served: Served, asked: Asked) -> None:
        self.config, self.served, self.asked = config, served, asked
        subject = LocalSubject(
            ADAPTER,
            {},
            served.model,
            served.tokenizer,
            served.template,
            served.compute.eval_batch_size,
            config.seed,
        )
        self.answered: Answered = answers(config, subject, asked)
        self._rows = chosen(asked.rows, config.export.identity_rows, f"identity {config.seed}")
        self._tokens: list[list[int]] | None = None

    def standing(self, folder: Path) -> Standing:
        """The adapter beside itself."""
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return replace(
            standing(self.config, self.answered, self.answered, {"form": ADAPTER, "size": size, "digest": ""}),
            difference=None,
        )

    def identity(self, subject: ProgramSubject) -> dict[str, Any]:
        """The subject's greedy tokens beside the adapter's."""
        served, limit = self.served, self.served.max_new_tokens
        messages, tools = [row.prompt for row in self._rows], [row.tools for row in self._rows]
        prompts = render(served.tokenizer, messages, tools, served.template, prompt=True)
        if self._tokens is None:
            ends = ends_of(served.model.generation_config, served.tokenizer)
            self._tokens = identity.greedy(served.model, prompts, ends, served.tokenizer.pad_token_id, limit)
        subject.answer([Question(row.prompt, row.tools, row) for row in self._rows], limit, lambda count: None)
        found = identity.compared(served.model, prompts, self._tokens, subject.tokens)
        for first in found["first"]:
            first["row"] = self._rows[first["row"]].id
        return found


def _form(form: str, making: Making, reference: _Reference, version: Version, work: Path) -> Standing:
    """One form, written and judged."""
    folder = work / form
    notes = [forms.write(form, making, folder)]
    papers.add(folder, registry.files(version), local_folder(making.config.model), version.tags)
    size, digest = papers.seal(folder)
    with forms.subject(form, making, folder) as subject:
        answered = answers(making.config, subject, reference.asked)
        found = None
        if form.startswith("gguf") and isinstance(subject, ProgramSubject):
            found = reference.identity(subject)
            if subject.unnormalised:
                notes.append(f"{subject.unnormalised} prompts aren't in NFC: llama.cpp makes other tokens of them")
    files = {"form": form, "size": size, "digest": digest, "identity": found, "note": "; ".join(filter(None, notes))}
    return standing(making.config, answered, reference.answered, files)


def _as_trained(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with the version's own model, adapter and machine, whatever this one's are."""
    import torch

    whole = completed(settings)
    compute = Compute.model_validate(whole["compute"])
    if compute.device == "cuda" and not torch.cuda.is_available():
        compute = compute.model_copy(update={"device": "cpu"})
    model, adapter = Model.model_validate(whole["model"]), Adapter.model_validate(whole["adapter"])
    if folder := os.environ.get(BASE_FOLDER):
        model = model.model_copy(update={"id": folder})
    return config.model_copy(update={"model": model, "adapter": adapter, "compute": compute})


def _calibration(config: Config, served: Served, product: Product) -> list[list[int]]:
    """Conversations that the adapter was trained on, as tokens. Raises UserError where there are none."""
    if not {"awq", "gptq"} & set(config.export.forms):
        return []
    settings = config.export.calibration
    path = product.file(f"{settings.split}.jsonl")
    found: list[Row] = read_rows(path) if path.is_file() else []
    rows = [row for row in chosen(found, settings.rows, f"calibration {config.seed}") if row.completion]
    if not rows:
        raise UserError(f"export.calibration.split: {path} holds no rows with an answer")
    talks, tools = [[*row.prompt, *row.completion] for row in rows], [row.tools for row in rows]
    return render(served.tokenizer, talks, tools, served.template, prompt=False)


def _told(
    config: Config, standings: Sequence[Standing], version: Version, heldout: Heldout, work: Path, run: Run
) -> dict[str, Any]:
    """The table everywhere: terminal, EXPORT.md, export.json, the run, and tags on the version."""
    about = {
        "version": version.uri,
        "digest of the version's files": version.digest,
        "held-out rows": f"{heldout.digest} ({standings[0].rows:,} of {len(heldout.rows):,} judged)",
        "seed": str(config.seed),
    }
    (work / "EXPORT.md").write_text(table.page(standings, about), encoding="utf-8")
    found = {"about": about, "forms": [one.as_json() for one in standings]}
    (work / "export.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name in ("EXPORT.md", "export.json"):
        run.file(work / name)
    run.table(table.records(standings), "exports.json")
    for one in standings:
        run.metrics(_metrics(one))
    tags = {f"export.{one.form}": json.dumps(one.tag(heldout.digest)) for one in standings[1:]}
    registry.tag(version, tags)
    run.tags({"model": version.uri})
    for line in table.lines(standings):
        say(f"  {line}")
    return {
        "name": version.name,
        "version": version.number,
        "files_digest": version.digest,
        "heldout": heldout.digest,
        "forms": {one.form: one.tag(heldout.digest) | {"identity": one.identity} for one in standings[1:]},
    }


def _metrics(one: Standing) -> dict[str, float]:
    found = {"size": float(one.size), "same": one.same, "tokens_per_s": one.tokens_per_s}
    if one.accuracy:
        found["accuracy"] = one.accuracy.value
    if one.difference:
        found |= one.difference.metrics("difference")
    return {f"export/{one.form}/{name}": value for name, value in found.items()}
