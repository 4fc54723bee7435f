"""Pairs of processes that race for one alias: each pair must leave one winner, and the alias with it.

Two workers stay; for each race both look who holds the alias, meet at a barrier, and move it to a version of their own
by the code by which `promote` does: an entry in the ledger, a replay, the alias. What a promotion does before, its
rules and the copy of its bytes, is left out: it happens before the race. The store is SQLite, as by default.
"""

import multiprocessing
import sys
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import mlflow
from mlflow.tracking import MlflowClient

from pipelines.tracking import moves
from pipelines.tracking.store import create_database
from pipelines.tracking.who import signed

RACES = 100
RACES_A_MODEL = 20  # then another registered model, so that no ledger grows long
ALIAS = "staging"


def measure(temporary: Path, races: int = RACES) -> dict[str, Any]:
    """`races_single_winner` of `races_total` pairs left one winner that holds the alias."""
    uri = f"sqlite:///{temporary / 'mlflow.db'}"
    create_database(uri)
    mlflow.set_tracking_uri(uri)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    pipes = [context.Pipe() for _ in range(2)]
    workers = [
        context.Process(target=_work, args=(uri, theirs, start, str(number)), daemon=True)
        for number, (_, theirs) in enumerate(pipes, 1)
    ]
    for worker in workers:
        worker.start()
    ours = [pipe for pipe, _ in pipes]
    sound = 0
    for number in range(races):
        name = f"raced-{number // RACES_A_MODEL}"
        if number % RACES_A_MODEL == 0:
            _make(name, temporary)
        sound += _race(ours, name)
        if (number + 1) % 10 == 0:
            print(f"  {number + 1} of {races} races, {sound} with one winner", file=sys.stderr, flush=True)
    for pipe in ours:
        pipe.send(None)
    for worker in workers:
        worker.join()
    return {"races_single_winner": sound, "races_total": races}


def _race(pipes: list[Connection], name: str) -> bool:
    """Whether one of the two won, the other was told, and the alias and the ledger agree with them."""
    written = len(moves.history(name))
    for pipe in pipes:
        pipe.send(name)
    won = [to for to, is_won in (pipe.recv() for pipe in pipes) if is_won]
    entries = moves.history(name)[written:]
    held = moves.holder_of(MlflowClient(), name, ALIAS)
    valid = [one.to for one in entries if one.valid]
    return len(won) == 1 and valid == won and held == won[0] and len(entries) == len(pipes)


def _make(name: str, temporary: Path) -> None:
    """Three versions: one that holds the alias, and one for each racer."""
    client = MlflowClient()
    client.create_registered_model(name)
    for _ in range(4):
        client.create_model_version(name, str(temporary))
    moves.move(client, name, {"alias": ALIAS, "from": None, "to": "4", "kind": "promote", **signed("", None)})


def _work(uri: str, pipe: Connection, start: Barrier, own: str) -> None:
    """Races whenever a name comes; a racer that holds the alias already takes a version that neither holds."""
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    while (name := pipe.recv()) is not None:
        told = signed("", None)
        holder = moves.settled(client, name, ALIAS, told)
        to = "3" if holder == own else own
        start.wait()
        try:
            moves.move(client, name, {"alias": ALIAS, "from": holder, "to": to, "kind": "promote", **told})
            pipe.send((to, True))
        except moves.Lost:
            pipe.send((to, False))
