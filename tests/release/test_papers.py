"""Notices and lineage as they are for other sources, teachers and reports than the finished world's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines import product as products
from pipelines.config.schema import Config
from pipelines.product import Product
from pipelines.release.notices import notice, unattributed
from pipelines.release.papers import Made, contamination, licenses, rows_of, tags
from tests.conftest import World

PARITY = {"passed": False, "serving": {"vllm": {"loadable": False, "why": "DoRA"}}}


@pytest.fixture
def made(finished: World, config: Config) -> Made:
    adapter, scores = products.load(finished.product("adapter")), products.load(finished.product("scores"))
    rows, trained = rows_of(adapter, scores)
    parts = {"adapter": adapter.digest, "tokenizer": "t", "template": "c"}
    return Made(config, adapter, scores, rows, trained, {"config.json": "0"}, parts, {}, "2026-11-26T00:00:00+00:00")


def with_sources(made: Made, **changes: dict[str, Any]) -> Made:
    """The rows gone, so that the configuration's word stands."""
    task = made.config.task
    sources = {name: source.model_copy(update=changes.get(name, {})) for name, source in task.sources.items()}
    config = made.config.model_copy(update={"task": task.model_copy(update={"sources": sources})})
    return replace(made, config=config, rows=None, trained=None)


def test_attributions_stand_where_the_licence_asks_for_them(made: Made) -> None:
    named = {"license": "CC-BY-4.0", "attribution": "Queries by A. Person, example.org, CC BY 4.0."}
    found = with_sources(made, train=named, heldout={"license": "MIT"})
    page = notice(found, None)
    assert "CC-BY-4.0. Queries by A. Person, example.org, CC BY 4.0.\n" in page
    assert "MIT. The licence asks to name the source; the configuration gives no attribution." in page
    assert unattributed(found) == ["heldout"]
    assert licenses(found) == ["CC-BY-4.0", "MIT"]
    free = with_sources(made, train={"license": "CC0-1.0"}, heldout={"license": "house rules"})
    assert unattributed(free) == []
    assert "house rules. Whether it asks for an attribution is not known." in notice(free, None)


def test_the_base_s_own_notices_come_along(made: Made, tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("All of it\nhas to be kept.\n")
    (tmp_path / "config.json").write_text("{}")
    page = notice(made, tmp_path)
    assert "## LICENSE.txt of the base model\n\n    All of it\n    has to be kept.\n" in page
    assert "config.json" not in page


def test_teachers_are_named_with_their_conditions(made: Made) -> None:
    teacher = {
        "id": "big",
        "digest": "d",
        "license": {"id": "X", "conditions": "Say so.", "url": "https://example.org"},
    }
    taught = replace(made, adapter=replace(made.adapter, about=made.adapter.about | {"teachers": [teacher]}))
    assert "- big: [X](https://example.org). Its conditions: Say so." in notice(taught, None)
    found = tags(taught, PARITY)
    assert (found["teachers"], found["teachers.licenses"]) == ("d", "X")
    assert (found["parity.passed"], found["serving.vllm"]) == ("false", "false: DoRA")


def rewritten(
    rows: Product, folder: Path, change: Callable[[dict[str, Any]], None], hits: list[dict[str, Any]]
) -> Product:
    work = folder / "rows.partial"
    shutil.copytree(rows.folder, work, ignore=shutil.ignore_patterns(products.MANIFEST))
    summary = json.loads((work / "summary.json").read_text())
    change(summary["contamination"])
    (work / "summary.json").write_text(json.dumps(summary))
    (work / "contamination.jsonl").write_text("".join(json.dumps(hit) + "\n" for hit in hits))
    return products.publish(work, folder / "rows", "rows", rows.made_by, rows.about)


def test_contamination_is_clean_where_it_was_removed(made: Made) -> None:
    assert contamination(made)["clean"] is True
    assert tags(made, PARITY)["contamination"] == "clean"


def test_contamination_that_was_only_recorded_is_present(made: Made, tmp_path: Path) -> None:
    assert made.trained is not None
    hits = [{"id": "a", "decides": True}, {"id": "a", "decides": True}, {"id": "b", "decides": False}]
    trained = rewritten(made.trained, tmp_path, lambda report: report.update(policy="record"), hits)
    found = replace(made, trained=trained)
    assert contamination(found) == {"present": True, "removed": 3, "remaining": 1, "clean": False}
    assert tags(found, PARITY)["contamination"] == "present"


@pytest.mark.parametrize("gone", ["trained", "rows", "other held-out rows"])
def test_without_a_report_on_these_rows_it_is_absent(gone: str, made: Made) -> None:
    assert made.trained is not None
    if gone == "other held-out rows":
        about = made.trained.about | {"digests": made.trained.about["digests"] | {"heldout": "0"}}
        made = replace(made, trained=replace(made.trained, about=about))
    else:
        made = replace(made, trained=None) if gone == "trained" else replace(made, rows=None)
    assert contamination(made)["present"] is False
    assert tags(made, PARITY)["contamination"] == "absent"
