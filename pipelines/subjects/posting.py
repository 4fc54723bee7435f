"""Requests to an OpenAI-compatible server: its address and key, retries, waiting for it, and what they cost."""

import asyncio
import json
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx2

from pipelines.config.block import EndpointFields
from pipelines.errors import Unreachable, UserError
from pipelines.progress import say
from pipelines.subjects import completion
from pipelines.subjects.spending import Spending

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
LONGEST_RETRY_AFTER_S = 60.0
SECRET_LENGTH = 12  # keys of servers without a lock, such as EMPTY, are words that an answer may hold

LONGEST_PROBE_S = 5.0  # between two looks whether a server is back
FEWEST_RETRIES = 2  # of a request that broke while a server that is waited for was there
OVER_LIMIT = "spending limit of"
CHAT = "/chat/completions"

_RETRIED = (408, 429)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended, or all the tries of one; `found` is what was read of an answer.

    wordless is a completion without what was asked for, garbled none at all; silent is a timeout or a connection
    that broke, closed one that wasn't made; limit is a request that wasn't sent for its price.
    """

    kind: Literal["answered", "wordless", "garbled", "status", "silent", "closed", "limit"]
    reason: str = ""
    status: int = 0
    found: Any = None
    latency_s: float | None = None
    retry_after_s: float = 0.0
    tries: int = 1
    cost: float | None = None

    @property
    def again(self) -> bool:
        """Whether the same request may do better."""
        return self.dead or self.status in _RETRIED

    @property
    def dead(self) -> bool:
        """Whether the server, rather than the row, is to blame."""
        return self.kind in ("silent", "closed") or self.status >= 500

    @property
    def error(self) -> str:
        return self.reason if self.tries == 1 else f"{self.reason} ({self.tries} tries)"


class Server:
    """Where requests go, with which key, and the account of what they cost.

    `field` is where the configuration names it, such as `evaluate.subjects.api`. Raises UserError where the fields
    name no address, no model, or a key that the environment lacks. The key stands in no message and no record. With
    `patience_s` a server that is away is waited for so long.
    """

    def __init__(
        self,
        fields: EndpointFields,
        field: str,
        first_pause_s: float = FIRST_PAUSE_S,
        patience_s: float | None = None,
    ) -> None:
        self.field, self.fields, self.first_pause_s = field, fields, first_pause_s
        self.patience_s = patience_s
        self._base = _address(fields.at, field)
        self.at = str(self._base.copy_with(query=None, fragment=None)).rstrip("/")
        if fields.model is None:
            raise UserError(f"{field}.model: expected the name that the endpoint knows its model by, got null")
        self.model = fields.model
        self._key = key_of_environment(fields.api_key, field)
        self.spending = Spending(fields.spending_limit, fields.price_in, fields.price_out)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.field}: {self.model} at {self.at})"

    @property
    def spent(self) -> float:
        """US dollars so far; what the server didn't count is taken at its worst."""
        return self.spending.spent

    def url(self, path: str) -> httpx2.URL:
        """The address of what lies `path` below the server's."""
        return self._base.copy_with(path=f"{self._base.path.rstrip('/')}{path}")

    def root_url(self, path: str) -> httpx2.URL:
        """The address of what lies beside `/v1`."""
        return self._base.copy_with(path=f"{self._base.path.rstrip('/').removesuffix('/v1')}{path}")

    def without_key(self, content: bytes) -> bytes:
        """What the server says, where it says a secret."""
        secret = self._key and len(self._key) >= SECRET_LENGTH
        return content.replace(str(self._key).encode(), b"***") if secret else content

    def client(self, width: int) -> httpx2.AsyncClient:
        """A client for `width` requests at once, with the key in its headers."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=width, max_keepalive_connections=width)
        # A time limit of httpx2's own starts again with every byte; the request's is kept around it.
        return httpx2.AsyncClient(headers=headers, limits=limits, timeout=None)


class Posting(ABC):
    """Requests of one kind to `server`, over one client."""

    kept = "what it has answered is kept"  # of what was done before a server stayed away

    def __init__(self, server: Server, client: httpx2.AsyncClient, path: str) -> None:
        self.server, self.client, self.address = server, client, server.url(path)
        self.door = asyncio.Lock()
        self._back_at = -1.0

    @abstractmethod
    def worst(self, body: Mapping[str, Any]) -> float:
        """US dollars that a request may cost at most."""

    @abstractmethod
    def read(self, content: bytes, latency_s: float, worst: float) -> tuple[Outcome, float]:
        """What an answer says, and what it cost."""

    @abstractmethod
    async def look(self) -> Outcome:
        """What becomes of a request for one token."""

    async def send(self, body: Mapping[str, Any]) -> Outcome:
        """One request."""
        return await self.paid(body)

    async def tries(self, body: Mapping[str, Any], chance: str, insists: bool = True) -> Outcome:
        """The last outcome of up to `retries` + 1 tries; unless one `insists`, a closed door is not tried again.

        Tries while a server that is waited for was away don't count. `chance` draws the pauses.
        """
        waits = insists and self.server.patience_s is not None
        failed = tries = 0
        while True:
            begun, tries = time.monotonic(), tries + 1
            outcome = await self.send(body)
            if not outcome.again or (outcome.kind == "closed" and not insists):
                break
            if waits and outcome.dead and await self._was_away(begun, outcome):
                continue
            least = FEWEST_RETRIES if waits and outcome.dead else 0
            if failed >= max(self.server.fields.retries, least):
                break
            chosen = pause_s(self.server.first_pause_s, failed, chance)
            failed += 1
            await asyncio.sleep(max(chosen, outcome.retry_after_s))
        return replace(outcome, tries=tries)

    async def _was_away(self, begun: float, outcome: Outcome) -> bool:
        """Waits for the server, if it is away; whether it was. Raises Unreachable where patience runs out.

        One request asks for a token again and again while all others wait.
        """
        server, patience_s = self.server, self.server.patience_s or 0.0
        async with self.door:
            if begun < self._back_at:
                return True
            looks, since, reason = 0, time.monotonic(), outcome.reason
            while (found := await self.look()).dead:
                reason = found.reason
                if looks == 0:
                    say(f"  {server.field}: {server.at} is away ({reason}); waiting {patience_s:g} s at most")
                left_s = patience_s - (time.monotonic() - since)
                if left_s <= 0:
                    raise Unreachable(
                        f"{server.field}.at: {server.at} has been away for {server.field}.patience_s="
                        f"{patience_s:g} seconds: {reason}; {self.kept}, start again when it is back"
                    )
                pause = pause_s(server.first_pause_s, looks, "look")
                await asyncio.sleep(min(pause, LONGEST_PROBE_S, left_s))
                looks += 1
            if looks:
                self._back_at = time.monotonic()
                say(f"  {server.field}: {server.at} is back after {self._back_at - since:.0f} s")
            return looks > 0

    async def paid(self, body: Mapping[str, Any]) -> Outcome:
        """One request within the spending limit."""
        spending = self.server.spending
        worst = self.worst(body)
        if not await spending.reserve(worst):
            return Outcome("limit", f"{OVER_LIMIT} ${spending.limit:g} reached")
        cost = worst  # also of a request that nobody waited for to its end
        try:
            outcome, cost = await self._once(body, worst)
            return replace(outcome, cost=None if spending.price_in is None else cost)
        finally:
            spending.settle(worst, cost)

    async def _once(self, body: Mapping[str, Any], worst: float) -> tuple[Outcome, float]:
        """One request, and what it is taken to have cost: the worst where the server may have worked unseen."""
        begun = time.perf_counter()
        limit_s = self.server.fields.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                response = await self.client.post(self.address, content=json.dumps(body).encode())
        except TimeoutError:
            return Outcome("silent", f"no answer within {limit_s:g} s"), worst
        except httpx2.ConnectError as error:
            return Outcome("closed", f"no connection: {completion.brief(str(error))}"), 0.0
        except httpx2.DecodingError as error:
            return Outcome("garbled", f"an undecodable reply: {completion.brief(str(error))}"), worst
        except httpx2.TransportError as error:
            return Outcome("silent", f"the connection broke: {completion.brief(str(error))}"), worst
        latency_s = time.perf_counter() - begun
        content = self.server.without_key(response.content)
        if not response.is_success:
            return self._refusal(response, content), 0.0
        return self.read(content, latency_s, worst)

    def _refusal(self, response: httpx2.Response, content: bytes) -> Outcome:
        elsewhere = response.headers["location"].partition("?")[0] if response.has_redirect_location else ""
        where = f" to {completion.brief(elsewhere)}" if elsewhere else ""
        told = completion.refusal(content)
        reason = f"HTTP {response.status_code}{where}{told and ': '}{told}"
        wait_s = retry_after(response.headers.get("retry-after"), datetime.now(UTC))
        return Outcome("status", reason, response.status_code, retry_after_s=wait_s)


def pause_s(first_s: float, done: int, row: str) -> float:
    """Seconds to wait after the try numbered `done`, from 0: twice as long after each, but not for ever.

    Up to half of it is taken off, by chance and the same each time for a row, so that rows don't come back together.
    """
    return min(LONGEST_PAUSE_S, first_s * 2**done) * (1 - random.Random(f"{row} {done}").random() / 2)


def retry_after(header: str | None, now: datetime) -> float:
    """Seconds to wait by a Retry-After header, in seconds or as a date, but not for ever; 0 without one."""
    try:
        wait_s = float(header or 0)
    except ValueError:
        try:
            until = parsedate_to_datetime(str(header))
        except ValueError:
            return 0.0
        wait_s = (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S) if wait_s == wait_s else 0.0


def _address(at: str | None, field: str) -> httpx2.URL:
    """The address as it was given, which may have a query but no password."""
    expected = f"{field}.at: expected an address such as https://api.example.com/v1"
    shown = (at or "null").partition("?")[0].rpartition("@")[2]  # secrets stand before an @ or in a query
    try:
        url = httpx2.URL(at or "")
    except httpx2.InvalidURL:
        raise UserError(f"{expected}, got {shown}") from None
    if url.userinfo:
        raise UserError(f"{field}.at: it holds a password, which would be kept with every run; use api_key: env:NAME")
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise UserError(f"{expected}, got {shown}")
    if url.path.rstrip("/").endswith(CHAT):
        raise UserError(f"{expected}; leave {CHAT} out, which is added to it")
    return url


def key_of_environment(name: str | None, field: str) -> str | None:
    """The key that `env:NAME` names. Raises UserError where the environment lacks it, or no header may hold it."""
    if name is None:
        return None
    variable = name.removeprefix("env:")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{field}.api_key: the environment variable {variable} isn't set")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{field}.api_key: the environment variable {variable} holds signs that no header may hold")
    return key


def mistake(server: Server, outcome: Outcome, path: str) -> UserError:
    """What the user has to know when not even a short request is answered."""
    at, field, status = server.at, server.field, outcome.status
    if outcome.kind == "closed":
        return Unreachable(f"{field}.at: nothing listens at {at}: {outcome.error}")
    if outcome.again:
        return Unreachable(f"{field}.at: {at} doesn't answer: {outcome.error}")
    if outcome.kind == "limit":
        return UserError(
            f"{field}.spending_limit: not even a request for one token is within ${server.spending.limit:g}"
        )
    if outcome.kind == "garbled":
        return UserError(f"{field}.at: expected an OpenAI-compatible endpoint at {at}, got {outcome.error}")
    if status in (401, 403):
        wants = "refuses the key in" if server.fields.api_key else "wants a key; set"
        return UserError(f"{field}.api_key: {at} {wants} {server.fields.api_key or 'env:NAME'}: {outcome.error}")
    if status == 404:
        return UserError(f"{field}.at: {at} has no {path}, or no model {server.model!r}: {outcome.error}")
    if 300 <= status < 400:
        return UserError(f"{field}.at: {at} answers from elsewhere; name that address: {outcome.error}")
    return UserError(f"{field}: {at} refuses a request for one token of {server.model!r}: {outcome.error}")
