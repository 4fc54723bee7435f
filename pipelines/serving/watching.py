"""What answers while it answers: aliases are looked up, a version that one moved to takes over, another is let go."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from pipelines.config.serving import Serve
from pipelines.errors import UserError
from pipelines.progress import say
from pipelines.serving import smoke
from pipelines.serving.front import Behind
from pipelines.serving.routes import Routes
from pipelines.serving.versions import Brought, bring, check_loadable, check_one_base
from pipelines.tracking import registry
from pipelines.tracking.registry import Version
from pipelines.tracking.run import Run, started

LOAD_S = 300.0


@dataclass
class Watch:
    """The versions behind each name, by what the user calls it, and where new ones come from."""

    settings: Serve
    asked: Mapping[str, str]  # name -> URI
    held: dict[str, Brought]  # name -> the version behind it
    routes: Routes
    behind: Behind
    work: Path
    _refused: set[str] = field(default_factory=set)  # versions that weren't taken: told once
    _leaving: dict[str, Brought] = field(default_factory=dict)
    _away: bool = False

    def look(self) -> None:
        """Takes what aliases have moved to, and lets go of what no request is under way at any more."""
        for name, uri in self.asked.items():
            if "@" in uri:
                self._look_at(name, uri)
        self._let_go()

    def _look_at(self, name: str, uri: str) -> None:
        field = "serve.model" if name == next(iter(self.asked)) else f"serve.adapters.{name}"
        try:
            version = registry.find(uri, field)
        except UserError as error:
            if not self._away:
                say(f"  {error}; {self.held[name].version.uri} goes on answering as {name}")
            self._away = True
            return
        self._away = False
        if version.uri == self.held[name].version.uri or version.uri in self._refused:
            return
        try:
            self._take(name, version)
        except UserError as error:
            self._refused.add(version.uri)
            say(f"  {uri} moved to {version.uri}, which is not taken: {error}")
            say(f"  {self.held[name].version.uri} goes on answering as {name}")

    def _take(self, name: str, version: Version) -> None:
        """Raises UserError or Refused where the version can't take over; nothing has changed then."""
        before = self.held[name]
        tags = {"stage": "serve", "model": version.uri, "serve.name": name, "serve.before": before.version.uri}
        with started("serve", tags) as run:
            found = self._ready(version, run)
        self.routes.move(name, found.placed.name)
        self.held[name] = found
        say(f"  {version.uri} answers as {name} now, {before.version.uri} is let go")
        self._leaving[before.placed.name] = before

    def _ready(self, version: Version, run: Run) -> Brought:
        """The version, loaded and smoke-tested under its own name."""
        if known := next((held for held in self._known() if held.version.uri == version.uri), None):
            self._leaving.pop(known.placed.name, None)
            return known
        if self.settings.engine == "vllm" and (unsure := check_loadable(version)):
            say(f"  {unsure}")
        found = bring(version, self.work)
        check_one_base(next(iter(self.held.values())), found)
        self._post("load", found.placed.as_json())
        try:
            tested(self.settings, found, self.behind, run)
        except UserError:
            self._unload(found)
            raise
        return found

    def _known(self) -> list[Brought]:
        return [*self.held.values(), *self._leaving.values()]

    def _let_go(self) -> None:
        answering = {held.placed.name for held in self.held.values()}
        for name, brought in list(self._leaving.items()):
            if name in answering:
                del self._leaving[name]
            elif self.routes.drained(name, 0.0):
                del self._leaving[name]
                self._unload(brought)

    def _unload(self, brought: Brought) -> None:
        self._post("unload", {"lora_name": brought.placed.name})
        shutil.rmtree(brought.files)

    def _post(self, what: str, body: Mapping[str, object]) -> None:
        """Raises UserError with what the engine says against it."""
        url = f"{self.behind.address}/v1/{what}_lora_adapter"
        try:
            reply = httpx2.post(url, json=dict(body), headers=self.behind.headers, timeout=LOAD_S)
        except httpx2.HTTPError as error:
            raise UserError(f"the engine doesn't {what} {body['lora_name']}: {error}") from None
        if not reply.is_success:
            raise UserError(f"the engine doesn't {what} {body['lora_name']}: {reply.text[:300]}")


def tested(settings: Serve, brought: Brought, behind: Behind, run: Run) -> None:
    """The smoke test of a version that the engine has loaded. Raises Refused naming the row that differs."""
    rows = smoke.recorded(brought.files, settings.smoke_rows)
    uri = brought.version.uri
    if not rows:
        why = "serve.smoke_rows is 0" if not settings.smoke_rows else f"it holds no {smoke.RECORDED}"
        say(f"  {uri} is served without a smoke test: {why}")
        run.tags({"serve.smoke": f"none: {why}"})
        return
    limit = int(brought.placed.settings["max_new_tokens"])
    if settings.engine == "mlflow":
        ask = smoke.over_invocations(behind.address, limit)
    else:
        ask = smoke.over_chat(f"{behind.address}/v1", brought.placed.name, behind.key, limit)
    compared = smoke.compare(rows, ask)
    run.data(smoke.as_json(uri, compared), "smoke.json")
    same = sum(one.same for one in compared)
    run.tags({"serve.smoke": f"{same} of {len(compared)} as recorded"})
    smoke.check(uri, compared, settings.smoke_differing)
    say(f"  {uri}: {same} of {len(compared)} recorded answers are given again")


def pause(until: float) -> None:
    """Sleeps for a moment, or until that time of the monotonic clock if it comes before."""
    time.sleep(max(0.0, min(0.5, until - time.monotonic())))
