"""configuration -> plan: what fits which GPU, how fast and at what cost, without a weight being loaded."""

import json
from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.planning.plan import planned
from pipelines.planning.report import markdown, page, terminal
from pipelines.product import Product
from pipelines.progress import say
from pipelines.tracking.run import Run, finite


def is_current(config: Config, found: Product) -> bool:
    """Never: a plan is made to be shown, and takes a second."""
    return False


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Prints the plan and writes it as plan.json, plan.md and plan.html; returns what its manifest says."""
    plan = planned(config)
    for line in terminal(plan):
        say(f"  {line}".rstrip())
    files = {
        "plan.json": json.dumps(plan, indent=1, ensure_ascii=False) + "\n",
        "plan.md": markdown(plan),
        "plan.html": page(plan),
    }
    for name, text in files.items():
        (work / name).write_text(text, encoding="utf-8")
        run.file(work / name)
    fitting = [row for row in plan["rows"] if row["fits"]]
    metrics = {"plan/flops_per_token": plan["flops_per_token"], "plan/fitting_machines": float(len(fitting))}
    if found := plan["configured"]:
        metrics |= {"plan/memory_gib": found["total"], "plan/available_gib": found["available"]}
    run.metrics(finite(metrics))
    return {
        "stage": plan["stage"],
        "model": plan["model"]["name"],
        "trainable_parameters": plan["adapter"]["parameters"],
    }
