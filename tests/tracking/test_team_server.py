"""The recipe of docs/server.md, run for real: PostgreSQL, users, allowed hosts, artifacts behind the server."""

import base64
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
import requests
import yaml
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from benchmarks.postgres_server import ADMIN, Postgres, Team, initdb
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Tracking
from pipelines.tracking.kept import Kept
from pipelines.tracking.run import started
from pipelines.tracking.store import open_store
from tests.conftest import World

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(initdb() is None, reason="no PostgreSQL server is installed"),
]
TRAINER, READER = ("trainer", "trainers-own-password"), ("reader", "readers-own-password")
STEPS = 60


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    with Postgres(folder / "postgres") as database, Team(folder, database, workers=1) as server:
        server.allow(*TRAINER, "experiment:tunesmith", "registered_model:support")
        server.allow(*READER)
        yield server


@pytest.fixture(autouse=True)
def _in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def as_user(team: Team, user: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name, value in team.login(*user).items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(team.address)
    return MlflowClient(team.address)


def status(url: str, **headers: str) -> int:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_only_users_come_in_and_only_under_the_servers_names(team: Team) -> None:
    ours = {"Authorization": basic(ADMIN, team.password)}
    listed = f"{team.address}/api/2.0/mlflow/experiments/search?max_results=5"
    assert status(listed) == 401
    assert status(f"{team.address}/api/2.0/mlflow-artifacts/artifacts?path=x") == 401
    assert status(listed, Authorization=basic(ADMIN, "not the password")) == 401
    assert status(listed, **ours) == 200
    assert status(listed, Host="evil.example.com", **ours) == 403
    assert status(f"{team.address}/health") == 200


def test_who_may_only_read_writes_nothing(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    client = as_user(team, TRAINER, monkeypatch)
    experiment = client.get_experiment_by_name("tunesmith").experiment_id
    run = client.create_run(experiment)
    reader = as_user(team, READER, monkeypatch)
    assert reader.get_run(run.info.run_id).info.run_id == run.info.run_id
    for call in (
        lambda: reader.log_metric(run.info.run_id, "loss", 1.0),
        lambda: reader.create_run(experiment),
        lambda: reader.log_text(run.info.run_id, "text", "note.txt"),
        lambda: reader.set_registered_model_alias("support", "champion", "1"),
    ):
        with pytest.raises((MlflowException, requests.HTTPError), match=r"403|[Pp]ermission"):
            call()


def test_no_secret_is_on_a_command_line_or_in_the_servers_files(team: Team) -> None:
    secrets = (team.password, team.postgres.password)
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert any("mlflow" in line and str(team.port) in line for line in lines)
    files = [path.read_bytes() for path in team.folder.rglob("*.log")]
    assert files
    for secret in secrets:
        assert not [line for line in lines if secret in line]
        assert not [content for content in files if secret.encode() in content]


def test_the_spool_arrives_once_over_a_server_that_is_stopped_in_between(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal
    import threading

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    client = as_user(team, TRAINER, monkeypatch)
    open_store(Tracking(uri=team.address, experiment="tunesmith", system_metrics=False, patience_s=0))
    with started("frozen", {}, Kept(tmp_path / "adapter", patience_s=90)) as run:
        for step in range(1, STEPS + 1):
            run.metrics({"loss": step / 7}, step)
            run.params({f"p{step}": step})
            if step == STEPS // 2:
                team.signal(signal.SIGSTOP)
                # Calls time out meanwhile, lie in the frozen server's queue, and are sent again.
                threading.Timer(8, team.signal, (signal.SIGCONT,)).start()
                time.sleep(4)
        run.data("text", "some/note.txt")
    stored = client.get_run(run.id)
    assert stored.info.status == "FINISHED"
    curve = client.get_metric_history(run.id, "loss")
    assert [(point.step, point.value) for point in curve] == [(step, step / 7) for step in range(1, STEPS + 1)]
    assert len([name for name in stored.data.params if name.startswith("cfg.p")]) == STEPS
    assert Path(mlflow.artifacts.download_artifacts(run_id=run.id, artifact_path="some/note.txt")).read_text() == "text"
    assert stored.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert list((team.folder / "artifacts").rglob("note.txt"))


def test_a_stage_logs_as_a_user_and_shows_no_password(
    team: Team, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = as_user(team, TRAINER, monkeypatch)
    words = [word for word in world.overrides() if not word.startswith("tracking.uri")]
    command = [sys.executable, "-m", "pipelines", "prepare", *words]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    experiment = client.get_experiment_by_name("tunesmith").experiment_id
    (run,) = client.search_runs([experiment], "tags.stage = 'prepare'")
    assert run.info.status == "FINISHED"
    assert "config.yaml" in [found.path for found in client.list_artifacts(run.info.run_id)]
    told = done.stdout + done.stderr + str(run.data.params) + str(run.data.tags)
    assert TRAINER[1] not in told
    wrong = {**os.environ, **team.login(*READER)}
    done = subprocess.run(
        [*command, "reuse=false"], env=wrong, capture_output=True, text=True, cwd=PROJECT, check=False
    )
    assert done.returncode != 0
    assert "ermission" in done.stderr
    assert READER[1] not in done.stdout + done.stderr


def test_start_names_what_is_missing() -> None:
    environment = {"PATH": os.environ["PATH"], "PGHOST": "h"}
    done = subprocess.run(
        [str(PROJECT / "server/start.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "server/start.sh: PGUSER isn't set\n")


def test_compose_gives_start_what_it_asks_for_and_holds_no_secret() -> None:
    services = yaml.safe_load((PROJECT / "server/compose.yaml").read_text())["services"]
    given = services["mlflow"]["environment"]
    needed = {
        "PGHOST",
        "PGUSER",
        "PGPASSWORD",
        "PGDATABASE",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "ALLOWED_HOSTS",
        "ARTIFACTS",
    }
    assert needed <= set(given)
    assert given["PGPASSWORD"].startswith("${PGPASSWORD:?")
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert "ports" not in services["database"]
    example = dict(
        line.split("=", 1)
        for line in (PROJECT / "server/.env.example").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    named = {value.partition("{")[2].partition(":")[0] for value in given.values() if value.startswith("${")}
    assert named == set(example)
    assert not [name for name in example if "KEY" in name or "PASSWORD" in name if example[name]]
