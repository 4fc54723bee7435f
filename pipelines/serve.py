"""version -> an address that answers: verified, started, smoke-tested, and following its alias."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.config.paths import resolve
from pipelines.config.schema import Config
from pipelines.config.serving import Serve
from pipelines.errors import Unreachable, UserError
from pipelines.progress import say
from pipelines.serving import front
from pipelines.serving.engines import Program, program
from pipelines.serving.process import Engine, check_free
from pipelines.serving.routes import Routes
from pipelines.serving.versions import Brought, bring, check_loadable, check_one_base
from pipelines.serving.watching import Watch, pause, tested
from pipelines.subjects.posting import key_of_environment
from pipelines.tracking import registry
from pipelines.tracking.run import started


@dataclass(frozen=True)
class Up:
    """An engine that has passed its smoke test, the versions behind each name, and its program."""

    engine: Engine
    held: dict[str, Brought]
    program: Program


def act(config: Config) -> None:
    """Serves until it is stopped.

    Raises UserError where the version or the address can't be used, Refused where it answers otherwise than recorded,
    Unreachable where the engine ends.
    """
    settings = config.serve
    key = key_of_environment(settings.api_key, "serve")
    asked = _asked(config)
    check_free(settings.host, settings.port)
    with _folder(config) as work, _up(settings, asked, work) as up:
        if settings.engine == "mlflow":
            _say_open(settings, up, "/invocations")
            while True:
                up.engine.check()
                pause(float("inf"))
        _open(settings, asked, up, work, key)


def _asked(config: Config) -> dict[str, str]:
    """Name -> URI of what is to answer, the main version first."""
    settings = config.serve
    uri = settings.model or f"models:/{config.package.registered_model}@staging"
    name = registry.find(uri, "serve.model").name
    if name in settings.adapters:
        raise UserError(f"serve.adapters.{name}: {uri} has that name already; choose another one")
    return {name: uri, **settings.adapters}


@contextmanager
def _folder(config: Config) -> Iterator[Path]:
    """A work folder that goes with the server."""
    root = resolve(config.paths.outputs) / "serving"
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=root))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _up(settings: Serve, asked: dict[str, str], work: Path) -> Iterator[Up]:
    """The engine for the block, once it has passed; the start and its smoke test are a run of their own."""
    engine: Engine | None = None
    try:
        with started("serve", {"stage": "serve", "serve.engine": settings.engine}) as run:
            held = _brought(settings, asked, work)
            run.tags({f"serve.{name}": brought.version.uri for name, brought in held.items()})
            run.tags({f"serve.{name}.digest": brought.version.digest for name, brought in held.items()})
            versions = {brought.placed.name: brought for brought in held.values()}
            first = next(iter(held.values()))
            made = program(settings, [one.placed for one in versions.values()], first.files, work)
            engine = Engine(made.command, made.variables, work / "engine.log")
            say(f"  {settings.engine} is starting (process {engine.pid})")
            engine.wait_for(made.health, settings.start_s)
            for brought in versions.values():
                tested(settings, brought, made.behind, run)
        yield Up(engine, held, made)
    finally:
        if engine is not None:
            engine.stop(settings.stop_s)


def _brought(settings: Serve, asked: dict[str, str], work: Path) -> dict[str, Brought]:
    """The versions' verified files, all on one base."""
    held: dict[str, Brought] = {}
    for name, uri in asked.items():
        version = registry.find(uri, f"serve.adapters.{name}" if held else "serve.model")
        if settings.engine == "vllm" and (unsure := check_loadable(version)):
            say(f"  {unsure}")
        known = next((one for one in held.values() if one.version.uri == version.uri), None)
        held[name] = known or bring(version, work)
        check_one_base(next(iter(held.values())), held[name])
        say(f"  {version.uri}: verified, files {version.digest[:12]}")
    return held


def _open(settings: Serve, asked: dict[str, str], up: Up, work: Path, key: str | None) -> None:
    """Opens the door, and keeps what is behind it as the aliases say."""
    behind = up.program.behind
    routes = Routes({name: brought.placed.name for name, brought in up.held.items()})
    door = front.Door(front.app_of(routes, behind, key), settings.host, settings.port)
    watch = Watch(settings, asked, dict(up.held), routes, behind, work)
    door.open()
    try:
        _say_open(settings, up, "/v1/chat/completions")
        due = time.monotonic()
        while True:
            up.engine.check()
            if not door.alive:
                raise Unreachable(f"serve.port: nothing listens on {settings.host}:{settings.port} any more")
            if settings.poll_s is not None and time.monotonic() >= due:
                watch.look()
                due = time.monotonic() + settings.poll_s
            pause(due if settings.poll_s is not None else float("inf"))
    finally:
        door.close(settings.stop_s)


def _say_open(settings: Serve, up: Up, path: str) -> None:
    for name, brought in up.held.items():
        say(f"serve: {brought.version.uri} answers as {name} at http://{settings.host}:{settings.port}{path}")
