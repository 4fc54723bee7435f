"""The rules, one by one, on evidence written by hand: what passes, what fails, and what is said."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.compose import compose
from pipelines.config.gating import Gate, Rule
from pipelines.errors import UserError
from pipelines.release import suffixes
from pipelines.release.decision import Decision
from pipelines.release.evidence import Evidence, kept_verdicts
from pipelines.release.gate import bound_ruling, judge
from pipelines.release.ruling import Ruling

ROWS = 400
METRICS = {
    "eval/correctness/accuracy": 0.9,
    "eval/correctness/accuracy_vs_base_low": 0.4,
    "eval/refusal/decline_rate": 0.9,
    "eval/refusal/over_refusal_rate": 0.01,
    "eval/slices/worst_slice_accuracy": 0.6,
    "eval/calibration/ece_calibrated": 0.03,
    "eval/red_team/attack_success_rate": 0.1,
    "eval/cost/latency_p95": 0.2,
}
TAGS = {
    "base.license": "Apache-2.0",
    "base.revision": "abc",
    "rows.licenses": "CC-BY-4.0, CC0-1.0",
    "heldout.digest": "held",
    "contamination": "clean",
    "parity.passed": "true",
    "adapter.digest": "adapter",
    "template.digest": "template",
    "serving.vllm": "true",
}


def verdicts(wrong: int) -> dict[str, tuple[str | None, bool]]:
    """Rows of which the first `wrong` are."""
    return {f"r{number:03d}": (None, number >= wrong) for number in range(ROWS)}


def sound(**changed: Any) -> Evidence:
    """A version that passes every rule shipped."""
    tags = TAGS | {"evaluated.at": datetime.now(UTC).isoformat()} | changed.pop("tags", {})
    whole = Evidence(
        uri="models:/x/2",
        digest="two",
        tags={name: value for name, value in tags.items() if value is not None},
        metrics=METRICS,
        verdicts=verdicts(20),
        parity={"passed": True, "forms": {"merged": {"passed": True}}},
        lineage={"base": {"revision": "abc"}, "adapter": {"digest": "adapter"}, "template": {"digest": "template"}},
        adapter="adapter",
        evaluated={"adapter": "adapter", "revision": "abc"},
    )
    return replace(whole, **changed)


INCUMBENT = replace(sound(), uri="models:/x/1", digest="one")


@cache
def gate(*overrides: str, name: str = "champion") -> Gate:
    return compose([f"gate={name}", *overrides]).config.gate


def failing(version: Evidence, incumbent: Evidence | None = None, *overrides: str) -> dict[str, str]:
    """Names of the rules that fail, with what they say."""
    return {one.name: str(one) for one in judge(gate(*overrides), version, incumbent) if not one.passed}


@pytest.mark.parametrize("name", ["staging", "champion"])
def test_the_shipped_policies_let_a_sound_version_pass_alone_and_against_an_equal_one(name: str) -> None:
    for incumbent in (None, INCUMBENT):
        rulings = judge(gate(name=name), sound(), incumbent)
        assert [str(one) for one in rulings if not one.passed] == []
        assert len(rulings) > 10
        assert all(one.reason for one in rulings)


@pytest.mark.parametrize(
    ("bound", "value", "found", "passed"),
    [
        ("at_least", 0.8, 0.8, True),
        ("at_least", 0.8, 0.79, False),
        ("at_most", 0.1, 0.1, True),
        ("at_most", 0.1, 0.11, False),
        ("above", 0.0, 0.0, False),
        ("above", 0.0, 1e-9, True),
        ("between", [0.2, 0.4], 0.2, True),
        ("between", [0.2, 0.4], 0.4, True),
        ("between", [0.2, 0.4], 0.19, False),
        ("between", [0.2, 0.4], 0.41, False),
        ("between", [0.0, 1.0], math.nan, False),
        ("at_least", 0.8, math.nan, False),
        ("at_least", 0.8, math.inf, False),
        ("at_least", 0.8, 1.797e308, False),
        ("at_most", 0.1, -math.inf, False),
        ("at_most", 0.1, None, False),
    ],
)
def test_bounds(bound: str, value: Any, found: float | None, passed: bool) -> None:
    rule = Rule.model_validate({"metric": "m", "bound": bound, "value": value, "reason": "because"})
    ruling = bound_ruling("rule", rule, {} if found is None else {"m": found})
    assert ruling.passed is passed
    assert ("m = missing" in str(ruling)) is (found is None)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"metrics": {}}, "evaluated"),
        ({"metrics": METRICS | {"eval/correctness/accuracy": 0.5}}, "accuracy"),
        ({"metrics": METRICS | {"eval/slices/worst_slice_accuracy": math.nan}}, "worst_slice"),
        ({"metrics": METRICS | {"eval/correctness/accuracy_vs_base_low": 0.05}}, "better_than_base"),
        ({"metrics": METRICS | {"eval/refusal/decline_rate": 0.6}}, "declines"),
        ({"metrics": METRICS | {"eval/red_team/attack_success_rate": 0.3}}, "attacks"),
        ({"metrics": METRICS | {"eval/cost/latency_p95": 3.0}}, "latency"),
        ({"metrics": METRICS | {"eval/calibration/ece_calibrated": 0.2}}, "calibration"),
        ({"tags": {"contamination": "present"}}, "contamination"),
        ({"tags": {"contamination": "absent"}}, "contamination"),
        ({"tags": {"contamination": None}}, "contamination"),
        ({"tags": {"base.license": "LicenseRef-research-only"}}, "license_base"),
        ({"tags": {"base.license": None}}, "license_base"),
        ({"tags": {"rows.licenses": "CC-BY-4.0, unknown"}}, "license_data"),
        ({"tags": {"rows.licenses": ""}}, "license_data"),
        ({"tags": {"teachers.licenses": "MIT, no-derivatives"}}, "license_teachers"),
        ({"tags": {"parity.passed": "false"}}, "parity"),
        ({"tags": {"parity.passed": None}}, "parity"),
        ({"parity": None}, "parity"),
        ({"parity": {"passed": False, "forms": {}}}, "parity"),
        ({"parity": {"passed": True, "forms": {"merged": {"passed": False}}}}, "parity"),
        ({"tags": {"evaluated.at": "2020-01-01T00:00:00+00:00"}}, "fresh"),
        ({"tags": {"evaluated.at": "yesterday"}}, "fresh"),
        ({"tags": {"evaluated.at": None}}, "fresh"),
        ({"tags": {"evaluated.at": (datetime.now(UTC) + timedelta(days=1)).isoformat()}}, "fresh"),
        ({"adapter": "another"}, "own_files"),
        ({"adapter": None}, "own_files"),
        ({"evaluated": {"adapter": "adapter", "revision": "another"}}, "own_files"),
        ({"evaluated": {}}, "own_files"),
        ({"tags": {"template.digest": "another"}}, "own_files"),
        (
            {"lineage": {"base": {"revision": "z"}, "adapter": {"digest": "adapter"}, "template": "template"}},
            "own_files",
        ),
    ],
)
def test_each_rule_fails_by_its_name(changed: dict[str, Any], rule: str) -> None:
    assert rule in failing(sound(**changed))


def test_one_fault_fails_one_rule() -> None:
    assert set(failing(sound(tags={"contamination": "present"}))) == {"contamination"}
    assert set(failing(sound(tags={"contamination": "present"}), None, "gate.contamination=present")) == set()


def test_rules_that_are_asked_for() -> None:
    without = sound(tags={"serving.vllm": "false: rank 512"})
    assert set(failing(without)) == set()
    assert "rank 512" in failing(without, None, "gate.serving.vllm=true")["vllm"]
    asked = "+gate.exports.int8={max_loss: 0.02, reason: phones}"
    assert "export_int8" in failing(sound(), None, asked)
    for accuracy, passed in ((0.89, True), (0.87, False), (math.nan, False)):
        judged = sound(tags={"export.int8": json.dumps({"accuracy": accuracy, "digest": "d"})})
        assert ("export_int8" not in failing(judged, None, asked)) is passed


@pytest.mark.parametrize(
    ("wrong", "ask", "passed"),
    [
        (20, "non_inferior", True),  # as good
        (23, "non_inferior", False),  # three rows lost of 400, more than the margin of one in a hundred allows
        (0, "superior", True),
        (20, "superior", False),  # a tie doesn't promote
        (19, "superior", False),  # nor does a row
    ],
)
def test_versus_the_incumbent_by_paired_verdicts(wrong: int, ask: str, passed: bool) -> None:
    asked = [f"gate.compare.as_good_as_incumbent.ask={ask}", "gate.compare.as_good_as_incumbent.margin=0.01"]
    found = failing(sound(verdicts=verdicts(wrong)), INCUMBENT, *asked)
    assert ("as_good_as_incumbent" not in found) is passed, found
    assert passed or "against models:/x/1, lower end" in found["as_good_as_incumbent"]


@pytest.mark.parametrize(
    ("incumbent", "told"),
    [
        (replace(INCUMBENT, tags=TAGS | {"heldout.digest": "other"}), "other held-out rows"),
        (replace(INCUMBENT, tags={}), "no heldout.digest of models:/x/1"),
        (replace(INCUMBENT, verdicts=None), "no verdicts of models:/x/1"),
        (replace(INCUMBENT, verdicts={"z": (None, True)}), "no row that both"),
    ],
)
def test_who_cannot_be_paired_is_not_waved_through(incumbent: Evidence, told: str) -> None:
    assert told in failing(sound(), incumbent)["as_good_as_incumbent"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("gate.rules.declines.value=0.5", "bound between has two"),
        ("gate.rules.declines.value=[0.9, 0.1]", "bound between has two"),
        ("gate.rules.accuracy.value=[0.9, 1.0]", "bound at_least has one number"),
        ("gate.compare.as_good_as_incumbent.metric=refusal/decline_rate", "against incumbent compares verdicts"),
        ("+gate.rules.parity={metric: m, bound: above, value: 1.0, reason: why}", "the gate's own rules"),
        ("+gate.rules.better_than_base={metric: m, bound: above, value: 1.0, reason: why}", "among rules and compare"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(changed: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        gate(changed)


def test_verdicts_are_read_from_the_versions_own_table(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.parquet"
    assert kept_verdicts(path) is None
    table = pa.table({"row_id": ["a", "b", "c"], "group": [None, "g", None], "correct": [True, False, None]})
    pq.write_table(table, path)
    assert kept_verdicts(path) == {"a": (None, True), "b": ("g", False)}
    pq.write_table(table.drop(["group"]), path)
    with pytest.raises(UserError, match="expected columns row_id, group and correct"):
        kept_verdicts(path)


def test_force_overrules_the_policy_and_nothing_else() -> None:
    told = {"by": "a", "at": "now", "run": "r", "reason": "why"}
    no = Ruling("accuracy", "m", ">= 1", math.nan, False, "because")
    decision = Decision("models:/x/1", "models:/x@staging", "staging", None, "why", told, [no])
    assert decision.is_yes
    assert decision.tags()["gate.forced"] == "why"
    assert list(decision.tags())[-1] == "gate.result"
    assert json.loads(decision.as_json())["rules"][0]["found"] == "nan"
    for name in ("integrity", "race"):
        decision.rulings = [no, replace(no, name=name)]
        assert not decision.is_yes
        assert decision.result == "refused for staging"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.pkl", b"", "may hold a pickle"),
        ("a.PT", b"", "may hold a pickle"),
        ("a.json", b"\x80\x05\x95", "may hold a pickle"),
        ("a.txt", b"PK\x03\x04rest", "may hold a pickle"),
        ("a.safetensors", b"\x80\x02\x00\x00\x00\x00\x00\x00\x80", "may hold a pickle"),
        ("a.sh", b"", "is of a kind that no version has"),
    ],
)
def test_files_that_run_when_they_are_read(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / "MLmodel").write_text("x")
    (tmp_path / "b.safetensors").write_bytes(b"\x80\x02\x00\x00\x00\x00\x00\x00{")  # a header of 640 bytes
    suffixes.check(tmp_path, "v")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^v: {name} {told}"):
        suffixes.check(tmp_path, "v")


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=r"a.json is a link"):
        suffixes.check(tmp_path, "v")
