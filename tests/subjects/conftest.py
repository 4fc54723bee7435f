"""Endpoints to ask: one that misbehaves, and the shipped model behind one."""

from collections.abc import Iterator

import pytest

from pipelines.config.paths import PROJECT
from tests.subjects import serving
from tests.subjects.serving import Faulty, Served


@pytest.fixture(scope="session")
def _faulty_process() -> Iterator[Faulty]:
    with serving.faulty() as server:
        yield server


@pytest.fixture
def faulty(_faulty_process: Faulty) -> Faulty:
    """The faulty server, with nothing seen yet."""
    _faulty_process.forget()
    return _faulty_process


@pytest.fixture(scope="session")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The shipped model behind the tests' own server, which gives logprobs."""
    log = tmp_path_factory.mktemp("server") / "own.log"
    with serving.serving(PROJECT / "data/models/tiny", serving.OWN, log) as server:
        yield server


@pytest.fixture(scope="session")
def transformers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The shipped model behind `transformers serve`."""
    if missing := serving.transformers_lacks():
        pytest.skip(f"transformers serve needs {missing}")
    log = tmp_path_factory.mktemp("server") / "transformers.log"
    with serving.serving(PROJECT / "data/models/tiny", serving.TRANSFORMERS, log) as server:
        yield server
