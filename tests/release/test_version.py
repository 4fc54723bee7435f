"""What a registered version holds, and that it is what it says."""

import ast
import json
import re
import shutil
import sys
from importlib.metadata import packages_distributions, requires
from importlib.metadata import version as installed
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines import product as products
from pipelines.config.paths import PROJECT
from pipelines.evaluation import record as table
from pipelines.product import file_hash
from pipelines.release.carried import imported, modules
from pipelines.tracking import registry
from pipelines.tracking.registry import REQUIRED, Version
from tests.conftest import World
from tests.release.conftest import ask

RELEASE = "artifacts/release"


def json_of(files: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((files / RELEASE / name).read_text(encoding="utf-8"))
    return found


def test_a_version_holds_model_code_and_papers(finished: World, files: Path) -> None:
    found = {path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()}
    papers = {f"{RELEASE}/{name}" for name in ("README.md", "NOTICE.md", "requirements.lock", "config.yaml")}
    papers |= {f"{RELEASE}/{name}" for name in ("lineage.json", "parity.json", "answers.json", "verdicts.parquet")}
    assert found >= papers | {"MLmodel", "chat_model.py", "requirements.txt", "input_example.json", "seal.json"}
    adapter = products.load(files / "artifacts/adapter")
    assert adapter.digest == products.load(finished.product("adapter")).digest
    assert str(PROJECT) not in (files / "MLmodel").read_text().replace(str(finished.model), "")
    assert file_hash(files / RELEASE / "requirements.lock") == file_hash(PROJECT / "requirements.lock")


def test_its_lineage_names_everything_by_content(finished: World, files: Path, version: Version) -> None:
    lineage = json.loads((files / RELEASE / "lineage.json").read_text())
    assert lineage["base"]["files"]["model.safetensors"] == file_hash(finished.model / "model.safetensors")
    rows = products.load(finished.product("rows"))
    assert lineage["rows"]["digest"] == rows.digest
    assert {source["name"]: source["sha256"] for source in lineage["rows"]["sources"]} == {
        name: file_hash(finished.rows / f"{name}.csv") for name in ("train", "heldout")
    }
    report = json.loads((rows.folder / "summary.json").read_text())["contamination"]
    assert lineage["rows"]["contamination"]["removed"] == report["removed"]
    tags = version.tags
    assert (tags["contamination"], tags["parity.passed"], tags["serving.vllm"], tags["quantization"]) == (
        "clean",
        "true",
        "true",
        "none",
    )
    scores = products.load(finished.product("scores"))
    assert tags["evaluated.at"] == scores.made_by["at"] == lineage["scores"]["created"]
    assert (tags["tokenizer.digest"], tags["template.digest"]) == (lineage["tokenizer"], lineage["template"])
    assert tags["config.digest"] == products.digest_of(yaml.safe_load((files / RELEASE / "config.yaml").read_text()))


def test_its_verdicts_are_those_of_its_evaluation(finished: World, files: Path) -> None:
    found = pq.read_table(files / RELEASE / "verdicts.parquet").to_pylist()
    records, _ = table.read(finished.product("scores") / "answers.parquet")
    judged = table.of(records, table.HELDOUT, "adapter")
    assert [(row["row_id"], row["correct"]) for row in found] == [(r.row_id, r.correct) for r in judged]
    assert len(found) == 36


def test_its_answers_are_those_that_were_evaluated(finished: World, files: Path) -> None:
    records, _ = table.read(finished.product("scores") / "answers.parquet")
    judged = {record.row_id: record for record in table.of(records, table.HELDOUT, "adapter")}
    answers = json.loads((files / RELEASE / "answers.json").read_text())
    assert len(answers) == 8
    for row in answers:
        record = judged[row["row_id"]]
        assert (row["answer"], row["messages"]) == (record.answer, json.loads(record.prompt))
        assert len(row["tokens"]) == record.num_tokens


def test_every_form_is_the_adapter(files: Path) -> None:
    parity = json.loads((files / RELEASE / "parity.json").read_text())
    assert set(parity["forms"]) == {"reloaded", "merged", "pyfunc", "endpoint"}
    assert all(form["passed"] and form["tokens_equal"] == form["rows"] == 8 for form in parity["forms"].values())
    assert parity["forms"]["reloaded"]["max_logprob_difference"] == 0.0
    assert 0 < parity["forms"]["merged"]["max_logprob_difference"] < 0.001


def test_the_model_card_and_the_notices_are_filled(finished: World, files: Path) -> None:
    card = (files / RELEASE / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["library_name"], head["base_model"], head["license"]) == ("peft", str(finished.model), "cc-by-4.0")
    accuracy = products.load(finished.product("scores")).about["metrics"]["eval/correctness/accuracy"]
    assert f"| correctness/accuracy | {accuracy:.3f} [" in card
    assert "None" not in card
    notice = (files / RELEASE / "NOTICE.md").read_text()
    assert "Banking77 (Casanueva et al. 2020, CC BY 4.0)" in notice  # what the base asks for
    assert "heldout" in notice


def test_it_answers_the_same_by_its_own_code_alone(finished: World, files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    told = ask(str(files), folder)
    assert told["found"] == told["recorded"]
    assert len(told["code"]) > 10
    for name, file in told["code"].items():
        assert Path(file).is_relative_to(files), name


def test_the_code_is_what_serving_imports(files: Path) -> None:
    carried = {path.relative_to(files / "code").as_posix() for path in (files / "code").rglob("*.py")}
    entry = "pipelines.tracking.chat_model"
    assert carried == {path.relative_to(PROJECT).as_posix() for path in modules(PROJECT, entry)}
    assert "pipelines/policy/chat.py" in carried
    assert not {name for name in carried if name.startswith(("pipelines/dataset", "pipelines/evaluation"))}
    size = sum((files / "code" / name).stat().st_size for name in carried)
    assert size < 120_000
    for name in carried:
        ast.parse((files / "code" / name).read_text())


def test_what_the_code_imports_is_required(files: Path) -> None:
    names = {name.split(".")[0] for path in files.rglob("*.py") for name in imported(path)}
    outside = names - set(sys.stdlib_module_names) - {"pipelines"}
    optional = {"bitsandbytes", "deepspeed", "typing_extensions"}
    distributions = packages_distributions()
    required = {canonicalize_name(name) for name in REQUIRED}
    for name in outside - optional:
        assert {canonicalize_name(found) for found in distributions[name]} & required, name


def test_requirements_pin_all_that_is_needed(files: Path) -> None:
    lines = (files / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    assert not [pin for pin in pins.values() if "+" in pin]  # a build for one kind of machine
    assert all(installed(name).partition("+")[0] == pin for name, pin in pins.items())
    for name in pins:
        for wanted in map(Requirement, requires(name) or []):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert canonicalize_name(wanted.name) in pins, f"{name} needs {wanted}"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("artifacts/release/lineage.json", "artifacts/release/lineage.json was changed"),
        ("code/pipelines/policy/chat.py", "code/pipelines/policy/chat.py was changed"),
        ("artifacts/adapter/added.json", "artifacts/adapter/added.json was added"),
        (None, "artifacts/adapter/tokenizer.json is missing"),
        ("seal.json", "seal.json is missing or unreadable"),
    ],
)
def test_a_version_that_was_changed_is_not_loaded(name: str | None, told: str, files: Path) -> None:
    if name is None:
        (files / "artifacts/adapter/tokenizer.json").unlink()
    elif name == "seal.json":
        (files / name).unlink()
    else:
        (files / name).write_text("{}\n" if name.endswith("added.json") else (files / name).read_text() + "\n")
    with pytest.raises(Exception, match=re.escape(told)):
        mlflow.pyfunc.load_model(str(files))


def test_an_alias_leads_to_the_checked_files(finished: World, version: Version, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(finished.store)
    folder = registry.copied(version, tmp_path / "copy")
    shutil.rmtree(folder)
    adapter, settings = registry.contents(version)
    assert adapter.name == "adapter"
    assert settings["digests"]["adapter"] == version.tags["adapter.digest"]
