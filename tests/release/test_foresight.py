"""What the gate says of licences, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.compose import compose
from pipelines.config.paths import CONF
from pipelines.errors import Refused
from pipelines.release.foresight import check
from tests.conftest import World


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("gate", ["staging", "champion"])
def test_every_shipped_profile_and_task_may_be_released(gate: str) -> None:
    allowed = read(CONF / f"gate/{gate}.yaml")["licenses"]
    profiles = {read(path)["license"]["id"] for path in (CONF / "model").glob("*.yaml")}
    tasks = [read(path)["sources"] for path in (CONF / "task").glob("*.yaml")]
    assert len(tasks) > 10
    assert profiles <= set(allowed["base"])
    assert {source["license"] for sources in tasks for source in sources.values()} <= set(allowed["data"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.license.id=LicenseRef-research-only", "model.license.id: gate staging would refuse"),
        ("task.sources.banking77_train.license=unknown", "task.sources.banking77_train.license: gate staging would"),
    ],
)
def test_a_licence_that_is_not_allowed_is_named(override: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        check(compose([override]).config)


def test_a_flow_ends_before_it_begins(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("finetune", "task.sources.train.license=unknown") == 3
    assert "see gate.licenses.data" in capsys.readouterr().err
    assert not list(world.folder.iterdir())
