"""An OpenAI-compatible endpoint as a subject: many requests at once, each row's failure its own."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
import numpy as np
from numpy.typing import NDArray

from pipelines.config.block import EndpointFields
from pipelines.dataset.row import Message
from pipelines.errors import UserError
from pipelines.progress import say
from pipelines.subjects import completion
from pipelines.subjects.background import drain
from pipelines.subjects.cache import Answer, Cache, key_of
from pipelines.subjects.completion import Asking, Completion
from pipelines.subjects.posting import CHAT, FIRST_PAUSE_S, Outcome, Posting, Server, mistake
from pipelines.subjects.subject import Done, Question, Reply

GIVE_UP_AFTER = 25  # rows in a row that got nothing out of the server, all their retries included

T = TypeVar("T")
Speak = Callable[[Question, int], Reply]  # asks a question, for the try of that number, and waits

_HELLO = Question([{"role": "user", "content": "Hi"}])
_UNDERSTOOD = ("answered", "wordless")


@dataclass(frozen=True, slots=True)
class Recalled(Reply):
    """An answer that lay in the cache: nothing was sent, and nothing is paid."""


class Endpoint(Server):
    """POST {at}/chat/completions, `concurrency` requests at once, with retries and an account of what they cost.

    Raises UserError as `Server` does. With `patience_s` a server that is away is waited for so long, instead of giving
    rows up. Answers that are in `cache` are not asked for again, and those that come are kept there.
    """

    def __init__(
        self,
        fields: EndpointFields,
        field: str,
        first_pause_s: float = FIRST_PAUSE_S,
        patience_s: float | None = None,
    ) -> None:
        super().__init__(fields, field, first_pause_s, patience_s)
        self.cache: Cache | None = None
        self.refused: list[str] = []  # optional fields that the server takes no request with
        self._seen: dict[str, set[str]] = {"reported model": set(), "system fingerprint": set()}
        self.checked = False

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
            async with self.client(1) as client:
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
            async with self.client(width) as client:
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
            async with self.client(width) as client:
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

    def saw(self, found: Completion) -> None:
        """Keeps what the server calls itself."""
        for name, value in (("reported model", found.model), ("system fingerprint", found.fingerprint)):
            if value:
                self._seen[name].add(value)

    def _say_what_all_share(self, replies: Sequence[Reply]) -> None:
        errors = {reply.error for reply in replies}
        if len(replies) > 1 and len(errors) == 1 and None not in errors:
            say(f"  {self.field}: all {len(replies)} rows failed the same way: {replies[0].error}")


class _Session(Posting):
    """The chats of one call, over one client."""

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient, asking: Asking) -> None:
        super().__init__(endpoint, client, CHAT)
        self.endpoint, self.asking = endpoint, asking
        self._dead_in_a_row = 0

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
        async with self.door:
            if self.endpoint.checked:
                return
            first = _Session(self.endpoint, self.client, Asking(max_new_tokens=1))
            outcome = await first.asked(0, _HELLO, insists=False)
            if outcome.kind not in _UNDERSTOOD:
                raise mistake(self.endpoint, outcome, CHAT[1:])
            self.endpoint.checked = True

    async def _asked(self, position: int, question: Question) -> Reply:
        if self._dead_in_a_row >= GIVE_UP_AFTER:
            return Reply(None, error=f"not sent: the {GIVE_UP_AFTER} rows before had all failed")
        outcome = await self.asked(position, question)
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

    async def asked(self, position: int, question: Question, insists: bool = True) -> Outcome:
        """What becomes of a question, its retries included."""
        body = completion.request(self.endpoint.model, question, self.asking, position)
        return await self.tries(body, f"{self.asking.seed} {position}", insists)

    async def look(self) -> Outcome:
        asking = Asking(max_new_tokens=1)
        body = completion.request(self.endpoint.model, _HELLO, asking, 0)
        return await _Session(self.endpoint, self.client, asking).send(body)

    async def send(self, body: Mapping[str, Any]) -> Outcome:
        """The request without what the server refuses; a refusal that this mends is remembered."""
        refused = list(self.endpoint.refused)
        while True:
            sent = completion.without(body, refused)
            outcome = await self.paid(sent)
            name = completion.blamed(sent, outcome.reason) if outcome.status in (400, 422) else None
            if name is None:
                break
            refused.append(name)
        if outcome.kind in _UNDERSTOOD:
            self.endpoint.refused = sorted({*self.endpoint.refused, *refused})
        return outcome

    def worst(self, body: Mapping[str, Any]) -> float:
        most = completion.most_prompt_tokens(body)
        return self.endpoint.spending.cost(most, self.asking.max_new_tokens) or 0.0

    def read(self, content: bytes, latency_s: float, worst: float) -> tuple[Outcome, float]:
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
