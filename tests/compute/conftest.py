"""Rows for trainings in several ranks."""

from pathlib import Path

import pytest

from tests.conftest import World


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, store: str, small_model: Path, small_rows: Path) -> World:
    """A world with rows and nothing else."""
    made = World(tmp_path_factory.mktemp("prepared"), store, small_model, small_rows)
    assert made.run("prepare") == 0
    return made
