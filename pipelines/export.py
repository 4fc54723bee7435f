"""version -> export."""

from pathlib import Path
from typing import Any

from pipelines.config.schema import Config
from pipelines.product import Product
from pipelines.tracking.run import Run


def unneeded(config: Config) -> tuple[str, ...]:
    """A model named by URI needs no version of this configuration."""
    return ("version",) if config.export.model else ()


def run(config: Config, inputs: dict[str, Product], work: Path, run: Run) -> dict[str, Any]:
    """Writes the files."""
    raise NotImplementedError
