"""What a version is made of, by content: its lineage as one file, and as tags of the registry."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.product import Product, digest_of, load

SUMMARY = "summary.json"
HEADLINE = ("correctness/accuracy", "refusal/decline_rate", "red_team/attack_success_rate", "calibration/temperature")


@dataclass(frozen=True)
class Made:
    """Everything that a version was made of.

    `rows` are those that it was judged on and `trained` those that it learnt from, None where they are gone;
    `base_files` are the base's, name -> sha256; `digests` those of adapter, tokenizer and template; `code` names
    commit, lock and libraries; `evaluated_at` is an ISO time in UTC.
    """

    config: Config
    adapter: Product
    scores: Product
    rows: Product | None
    trained: Product | None
    base_files: Mapping[str, str]
    digests: Mapping[str, str]
    code: Mapping[str, str]
    evaluated_at: str

    @property
    def rows_digest(self) -> str:
        """Of the rows that were trained on; an adapter of before doesn't say, and was judged on the same product's."""
        return str((self.adapter.about.get("rows") or {}).get("digest") or self.scores.about["rows_digest"])


def rows_of(adapter: Product, scores: Product) -> tuple[Product | None, Product | None]:
    """The products of rows that the scores are taken on and that the adapter learnt from; None for one that is gone."""
    judged = _rows(Path(scores.about["heldout"]["place"]).parent, scores.about["rows_digest"])
    named = adapter.about.get("rows")
    trained = judged if named is None else _rows(Path(named["folder"]), named["digest"])
    return judged, trained


def _rows(folder: Path, digest: str) -> Product | None:
    try:
        found = load(folder)
    except UserError:  # removed, or made anew with others: what they were is in their run
        return None
    return found if found.digest == digest else None


def lineage(made: Made) -> dict[str, Any]:
    """`lineage.json`: everything by its content."""
    config, adapter, scores = made.config, made.adapter, made.scores
    quantization = config.adapter.quantization
    return {
        "base": {
            "id": config.model.id,
            "revision": config.model.revision,
            "license": config.model.license.id,
            "files": dict(made.base_files),
            "quantization": quantization.model_dump() if quantization else None,
        },
        "tokenizer": made.digests["tokenizer"],
        "template": made.digests["template"],
        "rows": {
            "digest": made.rows_digest,
            "licenses": licenses(made),
            "sources": sources(made),
            "contamination": contamination(made),
        },
        "adapter": {
            "digest": adapter.digest,
            "stage": adapter.made_by["stage"],
            "method": config.adapter.method,
            "parent": adapter.about.get("parent"),
            "run": adapter.run_id,
        },
        "teachers": adapter.about.get("teachers", []),
        "generated": adapter.about.get("generated"),
        "config": digest_of(config.model_dump()),
        "git": {"commit": made.code.get("git.commit"), "dirty": made.code.get("git.dirty") == "true"},
        "code": made.code.get("code.digest"),
        "lock": made.code.get("lock.digest"),
        "seed": adapter.about.get("seed", config.seed),
        "versions": {n.removeprefix("version."): v for n, v in made.code.items() if n.startswith("version.")},
        "scores": {
            "digest": scores.digest,
            "run": scores.run_id,
            "heldout": scores.about["heldout"]["digest"],
            "created": made.evaluated_at,
        },
    }


def sources(made: Made) -> list[dict[str, Any]]:
    """Where the rows came from: as prepare recorded it, or, where that is gone, as the configuration says."""
    given = made.config.task.sources
    found = _summary(made.trained).get("sources") or _summary(made.rows).get("sources")
    if found is None:
        found = {
            name: {"place": getattr(source, source.kind), "kind": source.kind, **source.model_dump()}
            for name, source in given.items()
        }
    return [
        {
            "name": name,
            "place": source["place"],
            "kind": source["kind"],
            "split": source["split"],
            "license": source["license"],
            "sha256": source["sha256"],
            "revision": source["revision"],
            "attribution": given[name].attribution if name in given else None,
        }
        for name, source in sorted(found.items())
    ]


def licenses(made: Made) -> list[str]:
    """Of all sources of the rows."""
    return sorted({source["license"] for source in sources(made)})


def contamination(made: Made) -> dict[str, Any]:
    """Whether there is a report on the training rows against these held-out rows, and what it says.

    `remaining` are contaminated rows that were trained on all the same.
    """
    trained = made.trained
    report = _summary(trained).get("contamination")
    if report is None or trained is None or made.rows is None:
        return {"present": False, "removed": None, "remaining": None, "clean": None}
    if trained.about["digests"]["heldout"] != made.rows.about["digests"]["heldout"]:
        return {"present": False, "removed": None, "remaining": None, "clean": None}
    # Under the other policies contaminated rows were removed, or there were none.
    remaining = _recorded(trained) if report["policy"] == "record" else 0
    return {"present": True, "removed": report["removed"], "remaining": remaining, "clean": remaining == 0}


def _recorded(rows: Product) -> int:
    """Contaminated rows in the list of hits."""
    hits = rows.file("contamination.jsonl")
    if not hits.is_file():
        return 0
    found = (json.loads(line) for line in hits.read_text(encoding="utf-8").splitlines())
    return len({hit["id"] for hit in found if hit["decides"]})


def _summary(rows: Product | None) -> dict[str, Any]:
    if rows is None or not rows.file(SUMMARY).is_file():
        return {}
    return dict(json.loads(rows.file(SUMMARY).read_text(encoding="utf-8")))


def tags(made: Made, parity: Mapping[str, Any]) -> dict[str, str]:
    """What a version's tags say of where it came from, and of what it showed."""
    config, adapter, scores, found = made.config, made.adapter, made.scores, contamination(made)
    quantization, vllm = config.adapter.quantization, parity["serving"]["vllm"]
    return {
        "base.id": config.model.id,
        "base.revision": str(config.model.revision),
        "base.license": config.model.license.id,
        "base.files": digest_of(dict(made.base_files)),
        "tokenizer.digest": made.digests["tokenizer"],
        "template.digest": made.digests["template"],
        "quantization": json.dumps(quantization.model_dump()) if quantization else "none",
        "rows.digest": made.rows_digest,
        "rows.licenses": ", ".join(licenses(made)),
        "adapter.digest": adapter.digest,
        "adapter.stage": str(adapter.made_by["stage"]),
        "adapter.parent": str((adapter.about.get("parent") or {}).get("digest")),
        "adapter.run": adapter.run_id,
        "adapter.generated": str(adapter.about.get("generated")),
        "scores.digest": scores.digest,
        "scores.run": scores.run_id,
        "config.digest": digest_of(config.model_dump()),
        "seed": str(config.seed),
        "contamination": "absent" if not found["present"] else "clean" if found["clean"] else "present",
        "evaluated.at": made.evaluated_at,
        "parity.passed": str(parity["passed"]).lower(),
        "serving.vllm": "true" if vllm["loadable"] else f"false: {vllm['why']}",
        **_taught(adapter),
        **_headline(scores),
    } | {name: value for name, value in made.code.items() if name.startswith(("git.", "lock."))}


def _taught(adapter: Product) -> dict[str, str]:
    """Whom the adapter learnt from, and under which licences."""
    teachers = adapter.about.get("teachers", [])
    if not teachers:
        return {}
    named = [str(teacher.get("digest") or teacher.get("endpoint")) for teacher in teachers]
    found = sorted({teacher["license"]["id"] for teacher in teachers})
    return {"teachers": ", ".join(named), "teachers.licenses": ", ".join(found)}


def _headline(scores: Product) -> dict[str, str]:
    """What a reader of the registry looks for first: metrics, where there are such, and against whom on which rows."""
    about, metrics = scores.about, scores.about["metrics"]
    reference = about["reference"]
    told = {"heldout.digest": about["heldout"]["digest"], "reference": reference}
    against = {
        "correctness.accuracy_of_reference": about["subjects"][reference].get("eval/correctness/accuracy"),
        "correctness.accuracy_vs_reference_low": metrics.get(f"eval/correctness/accuracy_vs_{reference}_low"),
    }
    shown = {name.replace("/", "."): metrics.get(f"eval/{name}") for name in HEADLINE}
    return told | {name: f"{value:.4f}" for name, value in (against | shown).items() if value is not None}
