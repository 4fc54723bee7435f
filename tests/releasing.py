"""A version with what `package` puts into a release, made of the finished world's; what it says can be changed."""

import json
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from mlflow.tracking import MlflowClient

from pipelines.evaluation import record as table
from pipelines.policy.base import local_folder, pin
from pipelines.product import folder_files, load
from pipelines.release.seal import DIGEST_TAG
from pipelines.tracking import registry
from pipelines.tracking.registry import Version
from pipelines.tracking.source import LIBRARIES, source_tags
from tests.conftest import World


def release(
    world: World,
    folder: Path,
    config: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
    name: str = "again",
) -> Version:
    """Registers version 1 of the world's model again, under another name, with `artifacts/release/`.

    `config` and `lineage` are laid over what the files hold, block by block.
    """
    mlflow.set_tracking_uri(world.store)
    version = registry.find(f"models:/{world.folder.name}/1", "model")
    files = registry.copied(version, folder)
    into = files / "artifacts" / "release"
    into.mkdir(parents=True, exist_ok=True)
    made = yaml.safe_load(mlflow.artifacts.load_text(f"runs:/{version.tags['adapter.run']}/config.yaml"))
    (into / "config.yaml").write_text(yaml.safe_dump(_over(made, config or {}), sort_keys=False), encoding="utf-8")
    told = _over(_lineage(world, version, made), lineage or {})
    (into / "lineage.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    _verdicts(world, into / "verdicts.parquet")
    run_id = str(MlflowClient().get_model_version(version.name, version.number).run_id)
    model_id, digest = registry.log_model(run_id, version.name, files, {})
    tags = {**version.tags, DIGEST_TAG: digest}
    return registry.register(name, model_id, run_id, tags)


def _over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = _over(both[key], value) if nested else value
    return both


def _lineage(world: World, version: Version, config: Mapping[str, Any]) -> dict[str, Any]:
    from pipelines.config.validate import validate

    whole = validate(config, str)
    base, tags = pin(whole.model), version.tags
    folder = local_folder(whole.model)
    summary = json.loads((world.product("rows") / "summary.json").read_text(encoding="utf-8"))
    return {
        "base": {
            "id": base.id,
            "revision": base.revision,
            "license": base.license.id,
            "files": folder_files(folder) if folder else {},
            "quantization": None,
        },
        "rows": {
            "digest": tags["rows.digest"],
            "licenses": tags["rows.licenses"].split(", "),
            "sources": [{"name": name, **source} for name, source in summary["sources"].items()],
            "contamination": {"present": True, "removed": 3, "remaining": 0},
        },
        "adapter": {"digest": tags["adapter.digest"], "stage": "sft", "parent": None, "run": tags["adapter.run"]},
        "teachers": [],
        "generated": None,
        "git": {"commit": tags.get("git.commit"), "dirty": tags.get("git.dirty") == "true"},
        "code": source_tags()["code.digest"],
        "lock": tags["lock.digest"],
        "seed": int(tags["seed"]),
        "versions": {library: installed(library) for library in LIBRARIES},
        "scores": {
            "digest": tags["scores.digest"],
            "run": tags["scores.run"],
            "heldout": tags["heldout.digest"],
            "created": "2026-11-26T12:00:00+00:00",
        },
    }


def _verdicts(world: World, path: Path) -> None:
    scores = load(world.product("scores"))
    records, _ = table.read(scores.file("answers.parquet"))
    found = table.of(records, table.HELDOUT, scores.about["candidate"])
    columns = {
        "row_id": [record.row_id for record in found],
        "group": pa.array([None for _ in found], pa.string()),
        "correct": pa.array([record.correct for record in found], pa.bool_()),
    }
    pq.write_table(pa.table(columns), path)
