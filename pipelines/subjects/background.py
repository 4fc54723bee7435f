"""Asynchronous work seen from a program that isn't."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


def drain(work: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]], take: Callable[[T], None]) -> None:
    """Gives `take` what `work` puts out, as it comes, and raises what `work` raises.

    The event loop has a thread of its own, and `take` is called in the caller's: a signal's exception ends the call
    at once, where a loop would take it for the failure of whatever it was just doing. Ending early cancels the work
    and waits until it has cleaned up.
    """
    items: SimpleQueue[tuple[T] | None] = SimpleQueue()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="requests", daemon=True)
    thread.start()
    running = asyncio.run_coroutine_threadsafe(work(lambda item: items.put((item,))), loop)
    running.add_done_callback(lambda _: items.put(None))
    try:
        while (item := items.get()) is not None:
            take(item[0])
        running.result()
    finally:
        asyncio.run_coroutine_threadsafe(_cancelled(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancelled() -> None:
    """Ends every other task of this loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
