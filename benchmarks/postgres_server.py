"""A PostgreSQL server on loopback, and MLflow's server on it, started as docs/server.md starts it."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.config.paths import PROJECT

START_S = 180.0
ADMIN = "admin"


def initdb() -> Path | None:
    """PostgreSQL's own programs' first one; None where no server is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    named = shutil.which("initdb")
    return found[-1] if found else Path(named) if named else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Postgres:
    """A server of its own below `folder`, with a database `mlflow` and the password that it was made with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        """By which libpq, and so server/start.sh, finds it."""
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "mlflow", "PGDATABASE": "mlflow"}
        return where | {"PGPASSWORD": self.password}

    def __enter__(self) -> Self:
        program = initdb()
        if program is None:
            raise FileNotFoundError("initdb: no PostgreSQL server is installed (apt-get install postgresql)")
        self.folder.mkdir(parents=True, exist_ok=True)
        if getpass.getuser() == "root":  # as which the server refuses to run
            for path in (self.folder, *list(self.folder.parents)[:3]):
                path.chmod(path.stat().st_mode | 0o055)
            shutil.chown(self.folder, "postgres")
        given = self.folder / "password"
        given.write_text(self.password + "\n", encoding="utf-8")
        given.chmod(0o644)
        data = ("-D", self.folder / "data")
        made = self._as_owner(program, *data, "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={given}")
        subprocess.run(made, check=True, capture_output=True)
        given.unlink()
        options = ("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}")
        command = self._as_owner(program.with_name("postgres"), *data, *options, "-p", str(self.port))
        with (self.folder.parent / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(300):
            if not self.sql("create database mlflow", "postgres"):
                return self
            time.sleep(0.2)
        raise TimeoutError("PostgreSQL doesn't answer")

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._process is not None:
            # PostgreSQL's fast way down. `runuser`, which started it, doesn't pass the signal on.
            number = (self.folder / "data/postmaster.pid").read_text(encoding="utf-8").split()[0]
            os.kill(int(number), signal.SIGINT)
            self._process.wait()

    def sql(self, text: str, database: str = "mlflow") -> int:
        """psql's exit code for a statement."""
        program = initdb()
        assert program is not None
        command = [str(program.with_name("psql")), "-d", database, "-q", "-c", text]
        environment = {**os.environ, **self.environment()}
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    @staticmethod
    def _as_owner(*command: str | Path) -> list[str]:
        words = [str(word) for word in command]
        return ["runuser", "-u", "postgres", "--", *words] if getpass.getuser() == "root" else words


class Team:
    """MLflow's server by server/start.sh: users, allowed hosts, artifacts behind it, on a PostgreSQL server."""

    def __init__(self, folder: Path, postgres: Postgres, hosts: str = "", workers: int = 2) -> None:
        self.folder, self.postgres, self.workers, self.port = folder, postgres, workers, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.hosts = hosts or f"127.0.0.1:{self.port}"
        self.password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        """What server/.env and server/compose.yaml hold."""
        return self.postgres.environment() | {
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "ALLOWED_HOSTS": self.hosts,
            "ARTIFACTS": str(self.folder / "artifacts"),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "WORKERS": str(self.workers),
            "PYTHON": sys.executable,
        }

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(PROJECT / "server/start.sh")],
                env={**os.environ, **self.environment()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "mlflow.log").read_text(encoding="utf-8")[-4000:])
            time.sleep(0.2)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                self._process.wait()

    def signal(self, signum: signal.Signals) -> None:
        """To the server and its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, signum)

    def login(self, user: str = ADMIN, password: str | None = None) -> dict[str, str]:
        """The environment of a client."""
        word = self.password if password is None else password
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": word,
        }

    def allow(self, user: str, password: str, *resources: str) -> None:
        """server/allow.py, as the admin."""
        command = [sys.executable, str(PROJECT / "server/allow.py"), user, *resources]
        environment = {**os.environ, **self.login(), "NEW_PASSWORD": password}
        subprocess.run(command, env=environment, check=True, capture_output=True)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False
