"""A load test of any OpenAI-compatible address: latencies, errors and throughput at a number of requests at once.

    python -m benchmarks.load http://127.0.0.1:8000/v1 support_routing [--requests N] [--at-once N] [--seconds S]

Asks held-out queries of Banking77 at temperature 0, streamed, until the requests are sent or the seconds are over. The
last line is one JSON object. A key is read from TUNESMITH_LOAD_KEY.
"""

import argparse
import asyncio
import csv
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

QUERIES = Path(__file__).parent.parent / "data/banking77/test.csv"
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Asked:
    """One request: seconds until its first and its last byte of text, and what went wrong."""

    first_s: float
    whole_s: float
    error: str | None


@dataclass(frozen=True)
class Load:
    """What is asked of whom; `seconds` is when the last request is begun at the latest."""

    address: str
    model: str
    requests: int
    at_once: int
    seconds: float


async def measure(load: Load) -> dict[str, Any]:
    """Sends the requests; returns the figures, milliseconds and requests a second."""
    with QUERIES.open(encoding="utf-8", newline="") as stream:
        queries = [record["text"] for record in csv.DictReader(stream)]
    key = os.environ.get("TUNESMITH_LOAD_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    turn, found, begun = iter(range(load.requests)), list[Asked](), time.monotonic()
    async with httpx2.AsyncClient(headers=headers, timeout=120.0) as client:

        async def worker() -> None:
            for number in turn:
                if time.monotonic() - begun > load.seconds:
                    return
                found.append(await _ask(client, load, queries[number % len(queries)]))

        await asyncio.gather(*[worker() for _ in range(load.at_once)])
    return figures(load, found, time.monotonic() - begun)


async def _ask(client: httpx2.AsyncClient, load: Load, query: str) -> Asked:
    body = {"model": load.model, "temperature": 0, "stream": True, "messages": [{"role": "user", "content": query}]}
    begun, first = time.monotonic(), 0.0
    ended = False
    try:
        async with client.stream("POST", f"{load.address}/chat/completions", json=body) as reply:
            if not reply.is_success:
                return Asked(0.0, time.monotonic() - begun, str(reply.status_code))
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        return Asked(first, time.monotonic() - begun, "error in the stream")
                    spoken = any(choice["delta"].get("content") for choice in event.get("choices", []))
                    first = first or (time.monotonic() - begun if spoken else 0.0)
                ended = ended or line == "data: [DONE]"
    except httpx2.HTTPError as error:
        return Asked(first, time.monotonic() - begun, type(error).__name__)
    return Asked(first, time.monotonic() - begun, None if ended else "cut off")


def figures(load: Load, found: list[Asked], seconds: float) -> dict[str, Any]:
    """Percentiles over the requests that were answered; errors by their kind."""
    whole = [1000 * one.whole_s for one in found if one.error is None]
    first = [1000 * one.first_s for one in found if one.error is None and one.first_s]
    errors = [one.error for one in found if one.error is not None]
    told: dict[str, Any] = {"at_once": load.at_once, "requests": len(found), "seconds": round(seconds, 2)}
    for name, values in (("ms", whole), ("first_token_ms", first)):
        told |= {f"p{p}_{name}": round(float(np.percentile(values, p)), 1) if values else None for p in PERCENTILES}
    told["requests_per_s"] = round(len(whole) / seconds, 2)
    return {**told, "errors": len(errors), "kinds": {kind: errors.count(kind) for kind in sorted(set(errors))}}


def main() -> None:
    """Prints the figures, one a line, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address", help="up to its /v1")
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    load = Load(given.address.rstrip("/"), given.model, given.requests, given.at_once, given.seconds)
    found = asyncio.run(measure(load))
    for name, value in found.items():
        print(f"{name:<20}{value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
