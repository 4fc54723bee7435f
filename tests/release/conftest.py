"""A registered version of the finished world, its files in a folder of the test's own, and adapters to spoil."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines import product as products
from pipelines.config.compose import compose
from pipelines.config.schema import Config
from pipelines.policy.base import pin
from pipelines.product import Product
from pipelines.tracking import registry
from tests.conftest import World

Spoil = Callable[[Path], None]
ASKING = Path(__file__).with_name("asking.py")


@pytest.fixture(scope="session")
def version(finished: World) -> registry.Version:
    """The version that the flow has registered."""
    mlflow.set_tracking_uri(finished.store)
    return registry.find(f"models:/{finished.folder.name}/1", "promote.model")


@pytest.fixture
def files(finished: World, version: registry.Version, tmp_path: Path) -> Path:
    """A copy of its files."""
    mlflow.set_tracking_uri(finished.store)
    return registry.copied(version, tmp_path / "version")


@pytest.fixture(scope="session")
def config(finished: World) -> Config:
    found = compose(finished.overrides()).config
    return found.model_copy(update={"model": pin(found.model)})


@pytest.fixture
def adapter(finished: World, tmp_path: Path) -> Callable[..., Product]:
    """The finished adapter with something done to its files, or to its manifest, and published anew."""

    def made(spoil: Spoil | None = None, about: Mapping[str, Any] | None = None) -> Product:
        source = products.load(finished.product("adapter"))
        work = tmp_path / "adapter.partial"
        shutil.copytree(source.folder, work, ignore=shutil.ignore_patterns(products.MANIFEST))
        if spoil:
            spoil(work)
        return products.publish(work, tmp_path / "adapter", "adapter", source.made_by, source.about | dict(about or {}))

    return made


def ask(uri: str, folder: Path, **environment: str) -> dict[str, Any]:
    """What another Python, in a folder of its own, says of the version."""
    shutil.copy(ASKING, folder / ASKING.name)
    done = subprocess.run(
        [sys.executable, ASKING.name, uri],
        cwd=folder,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
