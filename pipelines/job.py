"""configuration -> the file by which an engine starts it on its machines."""

import importlib
from pathlib import Path
from typing import Any

from pipelines.config.paths import PROJECT
from pipelines.config.schema import Config
from pipelines.product import Product
from pipelines.progress import say
from pipelines.tracking.run import Run

# What a user types then, from the project's folder; {folder} holds the files.
STARTED_BY = {
    "kubernetes": "kubectl apply -f {folder}/job.yaml",
    "kubeflow": "kubectl apply -f {folder}/job.yaml",
    "skypilot": "sky launch {folder}/task.yaml",
}


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Writes the engine's files into `work`, and says how they are started."""
    engine, folder = config.engine.kind, shown_folder(work)
    files: dict[str, str] = importlib.import_module(f"pipelines.engines.{engine}").files(config, folder)
    for name, text in files.items():
        (work / name).write_text(text, encoding="utf-8")
        run.file(work / name)
    starts = STARTED_BY[engine].format(folder=folder)
    say(f"  {config.job.stage} on {config.compute.num_nodes} nodes of {config.compute.num_processes} processes")
    say(f"  start it with: {starts}")
    return {"engine": engine, "stage": config.job.stage, "started_by": starts}


def shown_folder(work: Path) -> Path:
    """Where the files will lie once they are published, seen from the project's folder."""
    folder = work.with_name(work.name.removesuffix(".partial"))
    return folder.relative_to(PROJECT) if folder.is_relative_to(PROJECT) else folder
