"""The gate: what passes, what is refused, and what a refusal leaves behind."""

import json
import math

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.config.compose import compose
from pipelines.config.gating import Rule
from pipelines.promote import judge, teachers_ruling
from pipelines.tracking.registry import Version
from tests.conftest import World


@pytest.mark.parametrize(
    ("bound", "value", "found", "passed"),
    [
        ("at_least", 0.8, 0.8, True),
        ("at_least", 0.8, 0.79, False),
        ("at_most", 0.1, 0.1, True),
        ("at_most", 0.1, 0.11, False),
        ("above", 0.0, 0.0, False),
        ("above", 0.0, 1e-9, True),
        ("at_least", 0.8, math.nan, False),
        ("at_least", 0.8, math.inf, False),
        ("at_least", 0.8, 1.797e308, False),
        ("at_most", 0.1, -math.inf, False),
    ],
)
def test_rule(bound: str, value: float, found: float, passed: bool) -> None:
    rule = Rule.model_validate({"metric": "m", "bound": bound, "value": value, "reason": "because"})
    assert judge("rule", rule, {"m": found}).passed is passed


def test_a_missing_metric_fails_its_rule() -> None:
    rule = Rule.model_validate({"metric": "m", "bound": "at_most", "value": 1.0, "reason": "because"})
    ruling = judge("rule", rule, {"other": 0.5})
    assert not ruling.passed
    assert "m = missing" in str(ruling)


def test_refusal_exits_3_leaves_the_alias_and_is_on_record(finished: World, capsys: pytest.CaptureFixture[str]) -> None:
    mlflow.set_tracking_uri(finished.store)
    name = finished.folder.name
    before = MlflowClient().get_model_version_by_alias(name, "staging").version
    uri = f"promote.model=models:/{name}/{before}"
    assert finished.run("promote", uri, "promote.to=champion", "gate.rules.accuracy.value=1.1") == 3
    assert (
        f"models:/{name}/{before} is not promoted to champion: gate staging fails accuracy" in capsys.readouterr().err
    )
    assert "champion" not in MlflowClient().get_registered_model(name).aliases
    version = MlflowClient().get_model_version(name, before)
    assert version.tags["gate.result"] == "refused for champion"
    run = MlflowClient().get_run(version.tags["gate.run"])
    assert run.info.status == "FINISHED"
    decision = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/decision.json"))
    assert [rule["name"] for rule in decision["rules"] if not rule["passed"]] == ["accuracy"]
    assert finished.run("promote", uri) == 0  # and the version is what it was


@pytest.mark.parametrize("uri", ["models:/nothing/1", "models:/nothing@staging", "nothing/1", "models:/nothing"])
def test_a_model_that_is_not_there_is_named(uri: str, finished: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert finished.run("promote", f"promote.model={uri}") == 2
    assert "promote.model: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("licenses", "allowed", "passed"),
    [
        ("MIT", ["MIT", "Apache-2.0"], True),
        ("MIT, other", ["MIT", "Apache-2.0"], False),
        ("other", [], False),
        ("other", None, None),
        ("", ["MIT"], None),
    ],
)
def test_licences_of_teachers(licenses: str, allowed: list[str] | None, passed: bool | None) -> None:
    version = Version("x", "1", {"teachers.licenses": licenses} if licenses else {})
    gate = compose([]).config.gate.model_copy(update={"teacher_licenses": allowed})
    rulings = teachers_ruling(gate, version)
    assert [ruling.passed for ruling in rulings] == ([] if passed is None else [passed])
    if passed is False:
        assert "other" in str(rulings[0])


def test_a_teacher_whose_licence_is_not_allowed_keeps_a_version_back(
    finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_tracking_uri(finished.store)
    name = finished.folder.name
    number = MlflowClient().get_model_version_by_alias(name, "staging").version
    MlflowClient().set_model_version_tag(name, number, "teachers.licenses", "no-derivatives")
    try:
        asked = f"promote.model=models:/{name}/{number}"
        assert finished.run("promote", asked, "promote.to=champion") == 3
        assert "fails teacher_licenses" in capsys.readouterr().err
        assert "champion" not in MlflowClient().get_registered_model(name).aliases
        assert finished.run("promote", asked, "gate.teacher_licenses=[no-derivatives]") == 0
    finally:
        MlflowClient().delete_model_version_tag(name, number, "teachers.licenses")
