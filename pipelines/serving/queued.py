"""The way of a request to the model: one is answered at a time, a bounded number wait, who has left is passed over."""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pipelines.serving.generation import Gone, Slot
from pipelines.serving.loaded import Models
from pipelines.serving.metrics import Metrics
from pipelines.serving.openai_form import Answer, Asked, BadRequest

END = None  # behind the last piece of an answer


@dataclass
class Work:
    """An answer that is being made; `gone` is set where nobody waits for it any more."""

    slot: Slot
    pieces: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    gone: bool = False
    future: "asyncio.Future[Answer]" = field(init=False)


class Engine:
    """Models behind a queue: the only thread that generates takes one request after the other."""

    def __init__(self, models: Models, queue: int) -> None:
        self.models, self.queue, self.metrics = models, queue, Metrics()
        self._thread = ThreadPoolExecutor(1, "model")

    def begin(self, asked: Asked) -> Work:
        """Puts a request into the queue.

        Raises BadRequest where the model isn't there, the request doesn't fit it, or (429) too many wait.
        """
        slot = self.models.slot(asked.model)
        prompt, decoding = self.models.prompt(slot, asked)
        if not self.metrics.enter(self.queue):
            raise BadRequest(f"{self.queue} requests wait already; come back later", None, "queue_full", status=429)
        loop, work, begun = asyncio.get_running_loop(), Work(slot), time.monotonic()
        # Calls of tools and stop strings are known only behind them: then the answer comes in one piece.
        told = asked.stream and not asked.tools and not asked.stop

        def tell(piece: str) -> None:
            if told:
                loop.call_soon_threadsafe(work.pieces.put_nowait, piece)

        def make() -> Answer:
            self.metrics.begin()
            try:
                if work.gone:
                    raise Gone
                return self.models.answer(slot, prompt, decoding, tell, lambda: work.gone)
            finally:
                self.metrics.end()

        def done(future: "asyncio.Future[Answer]") -> None:
            self._count(future, time.monotonic() - begun)
            work.pieces.put_nowait(END)

        made = loop.run_in_executor(self._thread, make)
        work.future = asyncio.ensure_future(_shown(made, asked.logprobs))
        work.future.add_done_callback(done)
        return work

    def _count(self, future: "asyncio.Future[Answer]", seconds: float) -> None:
        error = future.exception()
        if error is None:
            self.metrics.spent(future.result().prompt_tokens, future.result().num_tokens)
        elif not isinstance(error, Gone):
            print(f"chat: {error!r}", file=sys.stderr, flush=True)
        self.metrics.done(200 if error is None else 499 if isinstance(error, Gone) else 500, seconds)


async def _shown(made: "asyncio.Future[Answer]", logprobs: bool) -> Answer:
    """The answer, without log-probabilities where they weren't asked."""
    answer = await made
    return answer if logprobs else replace(answer, logprobs=None)
