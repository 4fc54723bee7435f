"""The made-up evaluation, measured once: with one row a group, and with rows in groups."""

from pathlib import Path

import pytest

from pipelines.evaluation import record
from pipelines.evaluation.findings import Findings, find, load
from pipelines.evaluation.heldout import Heldout
from tests.evaluation.by_hand import RESAMPLES
from tests.evaluation.example import heldout_set, made


@pytest.fixture(scope="session", params=[False, True], ids=["rows", "groups"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records and the setup as evaluate writes them."""
    records, setup = made(clustered=request.param, resamples=RESAMPLES)
    path = tmp_path_factory.mktemp("table") / "answers.parquet"
    record.write(path, records, {"setup": setup.as_json()})
    return path


@pytest.fixture(scope="session")
def findings(table: Path) -> Findings:
    return load(table)


@pytest.fixture(scope="session")
def measured() -> Findings:
    """The findings of rows that are their own groups, with few resamples."""
    return find(*made())


@pytest.fixture(scope="session")
def heldout() -> Heldout:
    return heldout_set()
