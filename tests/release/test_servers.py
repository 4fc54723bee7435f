"""Against real MLflow servers: names per stage that only some may move, and promotion from one server to another."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
from mlflow.tracking import MlflowClient

from pipelines.release import seal
from pipelines.tracking import moves, registry
from pipelines.tracking.copying import Registry
from tests.conftest import World
from tests.test_mlflow_run import free_port, served

PASSWORD = "a long password"
DEV, STAGING, PROD = "dev.support", "staging.support", "prod.support"
PLAIN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
SETTINGS = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@contextlib.contextmanager
def server(folder: Path, extra: dict[str, str], *options: str) -> Iterator[str]:
    """A server with its own database and artifacts; gives its address."""
    folder.mkdir()
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", f"{folder}/artifacts", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", address.rpartition(":")[2], *options]
    with served(command, f"{address}/health", PLAIN | extra, folder / "server.log"):
        yield address


@dataclass
class Team:
    """A server with authentication where alice develops and ci promotes, and one without where production is."""

    address: str
    production: str
    world: World
    patch: pytest.MonkeyPatch

    def client(self, user: str) -> MlflowClient:
        """Everything that follows is done as this user."""
        self.patch.setenv("MLFLOW_TRACKING_USERNAME", user)
        self.patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        mlflow.set_tracking_uri(self.address)
        return MlflowClient(self.address, self.address)

    def promote(self, user: str, *overrides: str) -> int:
        self.client(user)
        where = [f"tracking.uri={self.address}", f"tracking.experiment=of-{user}"]
        return self.world.run("promote", *where, f"model=models:/{DEV}/1", *overrides)


@pytest.fixture(scope="module")
def team(finished: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("servers")
    settings = folder / "auth.ini"
    settings.write_text(SETTINGS.format(folder=folder))
    guarded = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for this test",
    }
    mlflow.set_tracking_uri(finished.store)
    files = Registry().download(registry.find(f"models:/{finished.folder.name}@candidate"), folder / "files")
    tags = registry.find(f"models:/{finished.folder.name}@candidate").tags
    with (
        pytest.MonkeyPatch.context() as patch,
        server(folder / "guarded", guarded, "--app-name", "basic-auth") as address,
        server(folder / "production", {}) as production,
    ):
        made = Team(address, production, finished, patch)
        _permit(made)
        _develop(made, files, {name: value for name, value in tags.items() if not name.startswith("gate.")})
        yield made
        mlflow.set_tracking_uri(finished.store)


def _permit(team: Team) -> None:
    """What an administrator does once: makes the names, so that nobody else can, and says who may move them."""
    admin = team.client("admin")
    users = get_app_client("basic-auth", tracking_uri=team.address)
    for name in (DEV, STAGING, f"{STAGING}.moves"):
        admin.create_registered_model(name)
    dev, releases = admin.create_experiment("dev"), admin.create_experiment(f"{STAGING}.releases")
    for user in ("alice", "ci"):
        users.create_user(user, PASSWORD)
    for name in (DEV, STAGING, f"{STAGING}.moves"):
        users.grant_user_permission("ci", "registered_model", name, "EDIT")
    users.grant_user_permission("ci", "experiment", releases, "EDIT")
    users.grant_user_permission("alice", "registered_model", DEV, "EDIT")
    users.grant_user_permission("alice", "experiment", dev, "EDIT")


def _develop(team: Team, folder: Path, tags: dict[str, str]) -> None:
    """Alice registers a version as package does; its scores say themselves what they judged."""
    alice = team.client("alice")
    scores = json.loads((folder / "artifacts/scores.json").read_text())
    evaluated = {"adapter": tags["adapter.digest"], "revision": tags["base.revision"]}
    (folder / "artifacts/scores.json").write_text(json.dumps(scores | {"evaluated": evaluated}))
    digest = seal.write(folder)
    experiment = alice.get_experiment_by_name("dev").experiment_id
    model = alice.create_logged_model(experiment, "support", model_type="adapter")
    alice.log_model_artifacts(model.model_id, str(folder))
    alice.finalize_logged_model(model.model_id, "READY")
    tags |= {seal.DIGEST_TAG: digest}
    alice.create_model_version(DEV, f"models:/{model.model_id}", tags=tags, model_id=model.model_id)


@pytest.mark.slow
def test_who_may_edit_dev_alone_moves_nothing_of_staging(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    assert team.promote("alice", f"name={STAGING}") == 2
    assert "the MLflow server doesn't let" in capsys.readouterr().err
    alice = team.client("alice")
    for forbidden in (
        lambda: alice.set_registered_model_alias(STAGING, "staging", "1"),
        lambda: alice.create_model_version(f"{STAGING}.moves", f"models:/{DEV}/1"),
        lambda: alice.copy_model_version(f"models:/{DEV}/1", STAGING),
    ):
        with pytest.raises(MlflowException, match=r"(?i)permission denied"):
            forbidden()
    assert moves.history(STAGING, alice) == []

    assert team.promote("ci", f"name={STAGING}") == 0
    ci = team.client("ci")
    held = ci.get_model_version_by_alias(STAGING, "staging")
    assert held.tags["release.copy_of"] == f"models:/{DEV}/1"
    (move,) = moves.history(STAGING, ci)
    assert move.by.endswith("(MLflow: ci)")

    # Who wrote the source may write it again; what is staged stays what was judged.
    alice, model_id = team.client("alice"), alice.get_model_version(DEV, "1").source.removeprefix("models:/")
    other = Path(team.world.folder) / "scores.json"
    other.write_text("{}")
    alice._tracking_client._get_artifact_repo(model_id, resource="logged_model").log_artifact(str(other), "artifacts")
    staged = str(ci.get_model_version(STAGING, held.version).source).removeprefix("models:/")
    with pytest.raises(requests.HTTPError, match="Permission denied"):
        alice._tracking_client._get_artifact_repo(staged, resource="logged_model").log_artifact(str(other), "artifacts")
    team.client("ci")
    registry.files(registry.find(f"models:/{STAGING}@staging"))  # raises where a byte differs
    assert team.promote("ci", f"name={STAGING}", "to=champion") == 3
    assert "fails integrity" in capsys.readouterr().err


@pytest.mark.slow
def test_promotion_to_another_server_copies_and_checks_again(team: Team, capsys: pytest.CaptureFixture[str]) -> None:
    there = MlflowClient(team.production, team.production)
    if moves.holder_of(team.client("ci"), STAGING, "staging") is None:
        assert team.promote("ci", f"name={STAGING}") == 0
    staged = f"models:/{STAGING}@staging"
    asked = [f"model={staged}", f"name={PROD}", f"registry={team.production}", "to=champion"]
    assert team.promote("ci", *asked) == 0
    held = there.get_model_version_by_alias(PROD, "champion")
    team.client("ci")
    source = registry.find(staged)
    assert held.tags[seal.DIGEST_TAG] == source.digest
    assert held.tags["release.copy_of"] == source.uri
    assert held.tags["gate.result"] == source.tags["gate.result"] == "promoted to champion"
    assert [one.to for one in moves.history(PROD, there)] == [held.version]
    assert team.promote("ci", *asked) == 0  # the copy is there, and holds the alias
    assert [one.version for one in there.search_model_versions(f"name='{PROD}'")] == [held.version]

    mlflow.set_tracking_uri(team.production)
    message = {"messages": [{"role": "user", "content": "Where is my card?"}]}
    assert mlflow.pyfunc.load_model(f"models:/{PROD}@champion").predict(message)["object"] == "chat.completion"
    assert team.promote("ci", *asked[:2], "registry=http://127.0.0.1:9", "to=champion") == 4
    assert "promote.registry: no MLflow server answers" in capsys.readouterr().err
