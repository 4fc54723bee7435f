"""version + gate -> alias moved, or a refusal on record."""

import json
import math
import operator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.config.gating import Gate, Rule
from pipelines.config.schema import Config
from pipelines.errors import Refused
from pipelines.product import Product
from pipelines.progress import say
from pipelines.tracking import registry
from pipelines.tracking.registry import Version
from pipelines.tracking.run import Run

SIGNS = {"at_least": ">=", "at_most": "<=", "above": ">"}
BOUNDS = {"at_least": operator.ge, "at_most": operator.le, "above": operator.gt}
LARGEST = 1e300  # MLflow stores an infinite metric as 1.8e308


@dataclass(frozen=True)
class Ruling:
    """One rule applied: the value found (None where there is none), and whether it passes."""

    name: str
    metric: str
    asked: str
    found: float | None
    passed: bool
    reason: str

    def __str__(self) -> str:
        shown = "missing" if self.found is None else f"{self.found:.4f}"
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.metric} = {shown}, asked {self.asked}"


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Moves the alias where every rule passes; records the decision either way. Raises Refused."""
    made = inputs["version"].about if "version" in inputs else None
    version = registry.named(config.promote.model, "promote.model", made)
    scores = json.loads(registry.fetch(version, "artifacts/scores.json").read_text(encoding="utf-8"))
    rulings = [judge(name, rule, scores["metrics"]) for name, rule in config.gate.rules.items()]
    rulings += teachers_ruling(config.gate, version)
    passed = all(ruling.passed for ruling in rulings)
    decision = {
        "model": version.uri,
        "gate": config.gate.name,
        "alias": config.promote.to,
        "passed": passed,
        "previous": registry.holder(version.name, config.promote.to),
        "rules": [asdict(ruling) for ruling in rulings],
    }
    run.data(json.dumps(decision, indent=2) + "\n", "decision.json")
    registry.tag(version, _tags(decision, rulings, run.id))
    for ruling in rulings:
        say(f"  {ruling}")
    if not passed:
        failed = ", ".join(ruling.name for ruling in rulings if not ruling.passed)
        raise Refused(f"{version.uri} is not promoted to {config.promote.to}: gate {config.gate.name} fails {failed}")
    registry.point(version.name, config.promote.to, version.number)
    say(f"  {version.uri} is now {version.name}@{config.promote.to}")
    (work / "decision.json").write_text(json.dumps(decision, indent=2) + "\n", encoding="utf-8")
    return {"name": version.name, "version": version.number, "alias": config.promote.to}


def unneeded(config: Config) -> tuple[str, ...]:
    """A model named by URI needs no version of this configuration."""
    return ("version",) if config.promote.model else ()


def is_current(config: Config, found: Product) -> bool:
    """Whether the alias still points where this decision moved it; a model named by URI is judged every time."""
    if config.promote.model:
        return False
    return registry.holder(found.about["name"], found.about["alias"]) == found.about["version"]


def judge(name: str, rule: Rule, metrics: dict[str, float]) -> Ruling:
    """A metric that is missing or not finite fails its rule."""
    value = metrics.get(rule.metric)
    usable = value is not None and math.isfinite(value) and abs(value) < LARGEST
    passed = usable and BOUNDS[rule.bound](value or 0.0, rule.value)
    return Ruling(name, rule.metric, f"{SIGNS[rule.bound]} {rule.value:g}", value, bool(passed), rule.reason)


def teachers_ruling(gate: Gate, version: Version) -> list[Ruling]:
    """Whether the licences of all that the version learnt from are among those that the gate allows."""
    allowed, found = gate.teacher_licenses, version.tags.get("teachers.licenses", "")
    if allowed is None or not found:
        return []
    named = found.split(", ")
    refused = [name for name in named if name not in allowed]
    asked = f"<= 0, outside {', '.join(allowed)}" + (f"; got {', '.join(refused)}" if refused else "")
    reason = "what a teacher wrote may be learnt from only as its licence allows"
    return [Ruling("teacher_licenses", "licences of teachers", asked, float(len(refused)), not refused, reason)]


def _tags(decision: dict[str, Any], rulings: list[Ruling], run_id: str) -> dict[str, str]:
    tags = {f"gate.{ruling.name}": str(ruling) for ruling in rulings}
    result = f"promoted to {decision['alias']}" if decision["passed"] else f"refused for {decision['alias']}"
    return tags | {"gate.result": result, "gate.policy": decision["gate"], "gate.run": run_id}
