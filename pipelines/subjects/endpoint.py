"""An OpenAI-compatible endpoint as a subject: many requests at once, each row's failure its own."""

import asyncio
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

import httpx2
import numpy as np
from numpy.typing import NDArray

from pipelines.config.block import EndpointFields
from pipelines.dataset.row import Message
from pipelines.errors import Unreachable, UserError
from pipelines.progress import say
from pipelines.subjects import completion
from pipelines.subjects.background import drain
from pipelines.subjects.cache import Answer, Cache, key_of
from pipelines.subjects.completion import Asking, Completion
from pipelines.subjects.spending import Spending
from pipelines.subjects.subject import Done, Question, Reply

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
LONGEST_RETRY_AFTER_S = 60.0
SECRET_LENGTH = 12  # keys of servers without a lock, such as EMPTY, are words that an answer may hold
GIVE_UP_AFTER = 25  # rows in a row that got nothing out of the server, all their retries included

LONGEST_PROBE_S = 5.0  # between two looks whether a server is back
FEWEST_RETRIES = 2  # of a request that broke while a server that is waited for was there
OVER_LIMIT = "spending limit of"

T = TypeVar("T")
Speak = Callable[[Question, int], Reply]  # asks a question, for the try of that number, and waits

_HELLO = Question([{"role": "user", "content": "Hi"}])
_RETRIED = (408, 429)
_UNDERSTOOD = ("answered", "wordless")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended, or all the tries of one.

    wordless is a chat completion without a text, garbled no chat completion; silent is a timeout or a connection
    that broke, closed one that wasn't made; limit is a request that wasn't sent for its price.
    """

    kind: Literal["answered", "wordless", "garbled", "status", "silent", "closed", "limit"]
    reason: str = ""
    status: int = 0
    found: Completion | None = None
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


@dataclass(frozen=True, slots=True)
class Recalled(Reply):
    """An answer that lay in the cache: nothing was sent, and nothing is paid."""


class Endpoint:
    """POST {at}/chat/completions, `concurrency` requests at once, with retries and an account of what they cost.

    `field` is where the configuration names it, such as `evaluate.subjects.api`. Raises UserError where the fields
    name no address, no model, or a key that the environment lacks. The key stands in no message and no record.

    With `patience_s` a server that is away is waited for so long, instead of giving rows up. Answers that are in
    `cache` are not asked for again, and those that come are kept there.
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
        self.cache: Cache | None = None
        base = _address(fields.at, field)
        self.at = str(base.copy_with(query=None, fragment=None)).rstrip("/")
        self.url = base.copy_with(path=f"{base.path.rstrip('/')}/chat/completions")
        if fields.model is None:
            raise UserError(f"{field}.model: expected the name that the endpoint knows its model by, got null")
        self.model = fields.model
        self._key = _key(fields.api_key, field)
        self.spending = Spending(fields.spending_limit, fields.price_in, fields.price_out)
        self.refused: list[str] = []  # optional fields that the server takes no request with
        self._seen: dict[str, set[str]] = {"reported model": set(), "system fingerprint": set()}
        self.checked = False

    def __repr__(self) -> str:
        return f"Endpoint({self.field}: {self.model} at {self.at})"

    @property
    def spent(self) -> float:
        """US dollars so far; what the server didn't count is taken at its worst."""
        return self.spending.spent

    @property
    def about(self) -> dict[str, str]:
        """What answers there: its address without a query, its names, its prices a million tokens."""
        told = {name: ", ".join(sorted(values)) for name, values in self._seen.items()}
        told["refuses"] = ", ".join(self.refused)
        for name, price in (("price in", self.fields.price_in), ("price out", self.fields.price_out)):
            told[name] = "" if price is None else f"${price:g} per million tokens"
        return {"endpoint": self.at, "model": self.model} | {name: value for name, value in told.items() if value}

    def check(self) -> None:
        """Asks for one token, once.

        Raises Unreachable where nothing answers, UserError where what answers wants another key, knows no such
        model or isn't OpenAI-compatible.
        """
        if self.checked:
            return

        async def work(put: Callable[[None], None]) -> None:
            async with self._client(1) as client:
                await _Session(self, client, Asking(max_new_tokens=1)).check()

        drain(work, lambda _: None)

    def ask(self, questions: Sequence[Question], asking: Asking, done: Done) -> list[Reply]:
        """The replies in the order of the questions; a row that fails is a reply with an error.

        The first call checks the endpoint and raises what `check` does; with a cache, the first question that isn't
        in it does so.
        """
        if self.cache is None:
            self.check()
        width = 1 if asking.alone else min(self.fields.concurrency, max(len(questions), 1))

        async def work(put: Callable[[tuple[int, Reply]], None]) -> None:
            turn = iter(enumerate(questions))
            async with self._client(width) as client:
                session = _Session(self, client, asking)

                async def worker() -> None:
                    for position, question in turn:
                        put((position, await session.row(position, question)))

                await asyncio.gather(*[worker() for _ in range(width)])

        replies: dict[int, Reply] = {}

        def take(item: tuple[int, Reply]) -> None:
            replies[item[0]] = item[1]
            done(1)

        drain(work, take)
        found = [replies[position] for position in range(len(questions))]
        self._say_what_all_share(found)
        return found

    def converse(self, talks: Sequence[Callable[[Speak], T]], asking: Asking, take: Callable[[int, T], None]) -> None:
        """Conversations, `concurrency` of them at once: as soon as one has ended the next begins.

        A talk is called in a thread of its own, with a function that asks and waits; `take` is given its number and
        what it returns, in the caller's thread, as they come. A sample's seed depends on the question and the number
        of the try alone. Raises what `check` does before the first request, and Unreachable where the server stays
        away for longer than `patience_s`.
        """
        if self.cache is None:
            self.check()
        width = min(self.fields.concurrency, max(len(talks), 1))

        async def work(put: Callable[[tuple[int, T]], None]) -> None:
            turn, loop = iter(enumerate(talks)), asyncio.get_running_loop()
            threads = ThreadPoolExecutor(width, "talks")
            async with self._client(width) as client:
                bridge = _Bridge(_Session(self, client, asking), loop)

                async def worker() -> None:
                    for number, talk in turn:
                        put((number, await loop.run_in_executor(threads, talk, bridge.speak)))

                try:
                    await asyncio.gather(*[worker() for _ in range(width)])
                finally:
                    bridge.closed.set()
                    threads.shutdown(wait=False, cancel_futures=True)

        drain(work, lambda item: take(*item))

    def asker(
        self, max_new_tokens: int, done: Done = lambda count: None
    ) -> Callable[[list[list[Message]]], list[Reply]]:
        """A function from conversations to greedy replies, as a judge is asked."""

        def ask(conversations: list[list[Message]]) -> list[Reply]:
            return self.ask([Question(messages) for messages in conversations], Asking(max_new_tokens), done)

        return ask

    def without_key(self, content: bytes) -> bytes:
        """What the server says, where it says a secret."""
        secret = self._key and len(self._key) >= SECRET_LENGTH
        return content.replace(str(self._key).encode(), b"***") if secret else content

    def saw(self, found: Completion) -> None:
        """Keeps what the server calls itself."""
        for name, value in (("reported model", found.model), ("system fingerprint", found.fingerprint)):
            if value:
                self._seen[name].add(value)

    def _client(self, width: int) -> httpx2.AsyncClient:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=width, max_keepalive_connections=width)
        # A time limit of httpx2's own starts again with every byte; the request's is kept around it.
        return httpx2.AsyncClient(headers=headers, limits=limits, timeout=None)

    def _say_what_all_share(self, replies: Sequence[Reply]) -> None:
        errors = {reply.error for reply in replies}
        if len(replies) > 1 and len(errors) == 1 and None not in errors:
            say(f"  {self.field}: all {len(replies)} rows failed the same way: {replies[0].error}")


class _Session:
    """The requests of one call, over one client."""

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient, asking: Asking) -> None:
        self.endpoint, self.client, self.asking = endpoint, client, asking
        self._dead_in_a_row = 0
        self._door = asyncio.Lock()
        self._back_at = -1.0

    async def row(self, position: int, question: Question, number: int = 0) -> Reply:
        """The reply to a question, or its error; with a cache, what lies there for the try of that number."""
        cache = self.endpoint.cache
        if cache is None:
            return await self._asked(position, question)
        body = completion.request(self.endpoint.model, question, self.asking, position)
        key = key_of(self.endpoint.at, body, number)
        if known := cache.find(key):
            return Recalled(known.text, None, known.finished, known.prompt_tokens, known.num_tokens, cost=0.0)
        await self.check()
        reply = await self._asked(position, question)
        if reply.text is not None:
            cache.put(key, Answer(reply.text, reply.finished, reply.prompt_tokens, reply.num_tokens, reply.cost))
        return reply

    async def check(self) -> None:
        """Asks for one token, unless something was understood before. Raises what `Endpoint.check` does."""
        async with self._door:
            if self.endpoint.checked:
                return
            first = _Session(self.endpoint, self.client, Asking(max_new_tokens=1))
            outcome = await first.tries(0, _HELLO, insists=False)
            if outcome.kind not in _UNDERSTOOD:
                raise _mistake(self.endpoint, outcome)
            self.endpoint.checked = True

    async def _asked(self, position: int, question: Question) -> Reply:
        if self._dead_in_a_row >= GIVE_UP_AFTER:
            return Reply(None, error=f"not sent: the {GIVE_UP_AFTER} rows before had all failed")
        outcome = await self.tries(position, question)
        self._dead_in_a_row = self._dead_in_a_row + 1 if outcome.dead and self.endpoint.patience_s is None else 0
        if self._dead_in_a_row == GIVE_UP_AFTER:
            say(f"  {self.endpoint.field}: given up after {GIVE_UP_AFTER} rows in a row failed: {outcome.error}")
        if outcome.kind == "wordless" and self.endpoint.cache is not None:
            return Reply("", finished=False, cost=outcome.cost)  # it is paid for, so it is kept
        if outcome.found is None:
            return Reply(None, error=outcome.error)
        found = outcome.found
        return Reply(
            text=found.text,
            finished=found.finished,
            prompt_tokens=found.prompt_tokens,
            num_tokens=found.num_tokens,
            latency_s=outcome.latency_s,
            cost=self.endpoint.spending.cost(found.prompt_tokens, found.num_tokens),
            probability=found.probability,
        )

    async def tries(self, position: int, question: Question, insists: bool = True) -> Outcome:
        """The last outcome of up to `retries` + 1 tries; unless one `insists`, a closed door is not tried again.

        Tries while a server that is waited for was away don't count.
        """
        body = completion.request(self.endpoint.model, question, self.asking, position)
        waits = insists and self.endpoint.patience_s is not None
        failed = tries = 0
        while True:
            begun, tries = time.monotonic(), tries + 1
            outcome = await self._in_its_words(body)
            if not outcome.again or (outcome.kind == "closed" and not insists):
                break
            if waits and outcome.dead and await self._was_away(begun, outcome):
                continue
            least = FEWEST_RETRIES if waits and outcome.dead else 0
            if failed >= max(self.endpoint.fields.retries, least):
                break
            chosen = pause_s(self.endpoint.first_pause_s, failed, f"{self.asking.seed} {position}")
            failed += 1
            await asyncio.sleep(max(chosen, outcome.retry_after_s))
        return replace(outcome, tries=tries)

    async def _was_away(self, begun: float, outcome: Outcome) -> bool:
        """Waits for the server, if it is away; whether it was. Raises Unreachable where patience runs out.

        One request asks for a token again and again while all others wait.
        """
        endpoint, patience_s = self.endpoint, self.endpoint.patience_s or 0.0
        async with self._door:
            if begun < self._back_at:
                return True
            looks, since, reason = 0, time.monotonic(), outcome.reason
            while (found := await self._look()).dead:
                reason = found.reason
                if looks == 0:
                    say(f"  {endpoint.field}: {endpoint.at} is away ({reason}); waiting {patience_s:g} s at most")
                left_s = patience_s - (time.monotonic() - since)
                if left_s <= 0:
                    raise Unreachable(
                        f"{endpoint.field}.at: {endpoint.at} has been away for {endpoint.field}.patience_s="
                        f"{patience_s:g} seconds: {reason}; what it has answered is kept, start again when it is back"
                    )
                pause = pause_s(endpoint.first_pause_s, looks, "look")
                await asyncio.sleep(min(pause, LONGEST_PROBE_S, left_s))
                looks += 1
            if looks:
                self._back_at = time.monotonic()
                say(f"  {endpoint.field}: {endpoint.at} is back after {self._back_at - since:.0f} s")
            return looks > 0

    async def _look(self) -> Outcome:
        """What becomes of a request for one token."""
        asking = Asking(max_new_tokens=1)
        body = completion.request(self.endpoint.model, _HELLO, asking, 0)
        return await _Session(self.endpoint, self.client, asking)._in_its_words(body)

    async def _in_its_words(self, body: Mapping[str, Any]) -> Outcome:
        """The request without what the server refuses; a refusal that this mends is remembered."""
        refused = list(self.endpoint.refused)
        while True:
            sent = completion.without(body, refused)
            outcome = await self._paid(sent)
            name = completion.blamed(sent, outcome.reason) if outcome.status in (400, 422) else None
            if name is None:
                break
            refused.append(name)
        if outcome.kind in _UNDERSTOOD:
            self.endpoint.refused = sorted({*self.endpoint.refused, *refused})
        return outcome

    async def _paid(self, body: Mapping[str, Any]) -> Outcome:
        """One request within the spending limit."""
        spending = self.endpoint.spending
        worst = spending.cost(completion.most_prompt_tokens(body), self.asking.max_new_tokens) or 0.0
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
        limit_s = self.endpoint.fields.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                response = await self.client.post(self.endpoint.url, content=json.dumps(body).encode())
        except TimeoutError:
            return Outcome("silent", f"no answer within {limit_s:g} s"), worst
        except httpx2.ConnectError as error:
            return Outcome("closed", f"no connection: {completion.brief(str(error))}"), 0.0
        except httpx2.DecodingError as error:
            return Outcome("garbled", f"an undecodable reply: {completion.brief(str(error))}"), worst
        except httpx2.TransportError as error:
            return Outcome("silent", f"the connection broke: {completion.brief(str(error))}"), worst
        latency_s = time.perf_counter() - begun
        content = self.endpoint.without_key(response.content)
        if not response.is_success:
            return self._refusal(response, content), 0.0
        return self._answer(content, latency_s, worst)

    def _refusal(self, response: httpx2.Response, content: bytes) -> Outcome:
        elsewhere = response.headers["location"].partition("?")[0] if response.has_redirect_location else ""
        where = f" to {completion.brief(elsewhere)}" if elsewhere else ""
        told = completion.refusal(content)
        reason = f"HTTP {response.status_code}{where}{told and ': '}{told}"
        wait_s = retry_after(response.headers.get("retry-after"), datetime.now(UTC))
        return Outcome("status", reason, response.status_code, retry_after_s=wait_s)

    def _answer(self, content: bytes, latency_s: float, worst: float) -> tuple[Outcome, float]:
        cost = self.endpoint.spending.cost(*completion.charged(content))
        charged = worst if cost is None else cost
        try:
            found = completion.read(content)
        except completion.NoText as error:
            return Outcome("wordless", str(error)), charged
        except completion.Garbled as error:
            return Outcome("garbled", str(error)), charged
        self.endpoint.saw(found)
        return Outcome("answered", found=found, latency_s=latency_s), charged


class _Bridge:
    """Lets threads ask in a session, whose loop runs in another one."""

    def __init__(self, session: _Session, loop: asyncio.AbstractEventLoop) -> None:
        self._session, self._loop = session, loop
        self.closed = threading.Event()

    def speak(self, question: Question, number: int) -> Reply:
        """The reply. Raises CancelledError once the session has ended."""
        if self.closed.is_set():
            raise CancelledError
        position = position_of(question, number)
        asked = asyncio.run_coroutine_threadsafe(self._session.row(position, question, number), self._loop)
        while True:
            try:
                return asked.result(timeout=1.0)
            except TimeoutError:
                if self.closed.is_set():  # a loop that has stopped answers nobody
                    raise CancelledError from None


def position_of(question: Question, number: int) -> int:
    """What a sample's seed is raised by: of a question's tries each differs, whatever else is asked."""
    told = json.dumps([list(question.messages), list(question.tools or ())], sort_keys=True)
    return int(hashlib.sha256(told.encode()).hexdigest()[:5], 16) + number


@dataclass(frozen=True)
class EndpointSubject:
    """An endpoint that answers questions; `seed` goes with every request."""

    name: str
    endpoint: Endpoint
    seed: int

    @property
    def about(self) -> Mapping[str, str]:
        return self.endpoint.about

    def answer(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        """Answers at temperature 0, with their probability where the server gives one."""
        return self.endpoint.ask(questions, Asking(max_new_tokens, seed=self.seed, logprobs=True), done)

    def sample(self, questions: Sequence[Question], max_new_tokens: int, temperature: float, done: Done) -> list[Reply]:
        """Sampled answers; the same each time as far as the server keeps to its seed."""
        return self.endpoint.ask(questions, Asking(max_new_tokens, temperature, self.seed), done)

    def answer_alone(self, questions: Sequence[Question], max_new_tokens: int, done: Done) -> list[Reply]:
        """Answers at temperature 0, one request at a time."""
        return self.endpoint.ask(questions, Asking(max_new_tokens, seed=self.seed, logprobs=True, alone=True), done)

    def likelihoods(self, questions: Sequence[Question], options: Sequence[str], done: Done) -> NDArray[np.float64]:
        """Raises UserError: chat completions tell nothing of answers that weren't given."""
        raise UserError(
            f"{self.endpoint.field}: an endpoint gives no likelihoods; set evaluate.calibration.confidence=verbalised"
        )


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
    if url.path.rstrip("/").endswith("/chat/completions"):
        raise UserError(f"{expected}; leave /chat/completions out, which is added to it")
    return url


def _key(name: str | None, field: str) -> str | None:
    if name is None:
        return None
    variable = name.removeprefix("env:")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{field}.api_key: the environment variable {variable} isn't set")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{field}.api_key: the environment variable {variable} holds signs that no header may hold")
    return key


def _mistake(endpoint: Endpoint, outcome: Outcome) -> UserError:
    """What the user has to know when not even a short request is answered."""
    at, field, status = endpoint.at, endpoint.field, outcome.status
    if outcome.kind == "closed":
        return Unreachable(f"{field}.at: nothing listens at {at}: {outcome.error}")
    if outcome.again:
        return Unreachable(f"{field}.at: {at} doesn't answer: {outcome.error}")
    if outcome.kind == "limit":
        return UserError(
            f"{field}.spending_limit: not even a request for one token is within ${endpoint.spending.limit:g}"
        )
    if outcome.kind == "garbled":
        return UserError(f"{field}.at: expected an OpenAI-compatible endpoint at {at}, got {outcome.error}")
    if status in (401, 403):
        wants = "refuses the key in" if endpoint.fields.api_key else "wants a key; set"
        return UserError(f"{field}.api_key: {at} {wants} {endpoint.fields.api_key or 'env:NAME'}: {outcome.error}")
    if status == 404:
        return UserError(f"{field}.at: {at} has no chat/completions, or no model {endpoint.model!r}: {outcome.error}")
    if 300 <= status < 400:
        return UserError(f"{field}.at: {at} answers from elsewhere; name that address: {outcome.error}")
    return UserError(f"{field}: {at} refuses a request for one token of {endpoint.model!r}: {outcome.error}")
