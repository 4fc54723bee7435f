"""The ledger: one of two promoters wins, the dead are brought to their end, and what a person did is seen."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.tracking import moves
from pipelines.tracking.moves import Lost, held_before, history, move, settled
from pipelines.tracking.store import create_database

BY = {"by": "ana@here", "at": "2026-11-26T10:00:00+00:00", "run": "r", "reason": ""}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """A store of its own: the processes of a race open it too."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'mlflow.db'}"
    create_database(uri)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield MlflowClient()
    mlflow.set_tracking_uri(before)


@pytest.fixture
def name(client: MlflowClient, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A registered model with five versions."""
    made = str(request.node.name).replace("[", "_").replace("]", "_")
    client.create_registered_model(made)
    for _ in range(5):
        client.create_model_version(made, str(tmp_path))
    return made


def about(before: str | None, to: str, kind: str = "promote") -> dict[str, str | None]:
    return {"alias": "staging", "from": before, "to": to, "kind": kind, "digest": "d", **BY}


def holder(client: MlflowClient, name: str, alias: str = "staging") -> str | None:
    return moves.holder_of(client, name, alias)


def test_moves_are_kept_in_their_order_and_the_previous_holder_too(client: MlflowClient, name: str) -> None:
    assert history(name) == []
    assert settled(client, name, "staging", BY) is None
    for before, to in ((None, "1"), ("1", "2"), ("2", "4")):
        assert move(client, name, about(before, to)).done
        assert settled(client, name, "staging", BY) == to
    assert [(one.from_, one.to, one.valid, one.number) for one in history(name)] == [
        (None, "1", True, 1),
        ("1", "2", True, 2),
        ("2", "4", True, 3),
    ]
    assert (holder(client, name), holder(client, name, "staging-previous")) == ("4", "2")
    kept = history(name)[0]
    assert (kept.by, kept.at, kept.run, kept.digest, kept.kind) == (BY["by"], BY["at"], "r", "d", "promote")


def test_an_alias_that_was_there_before_the_ledger_is_its_beginning(client: MlflowClient, name: str) -> None:
    client.set_registered_model_alias(name, "staging", "3")
    assert settled(client, name, "staging", BY) == "3"
    move(client, name, about("3", "1"))
    assert held_before(history(name), "staging") == ["3", "1"]
    assert holder(client, name, "staging-previous") == "3"


def test_the_second_of_two_is_told_and_moves_nothing(client: MlflowClient, name: str) -> None:
    move(client, name, about(None, "1"))
    move(client, name, about("1", "2"))
    with pytest.raises(Lost, match=r"race: expected 1 to hold it when 3 takes it, but ana@here moved it to 2"):
        move(client, name, about("1", "3"))
    assert holder(client, name) == "2"
    assert [one.valid for one in history(name)] == [True, True, False]
    # An entry that lost stays lost, also when its beginning comes round again.
    move(client, name, about("2", "1"))
    assert holder(client, name) == "1"
    assert held_before(history(name), "staging") == ["1", "2", "1"]


def test_a_promoter_that_died_is_brought_to_its_end(client: MlflowClient, name: str) -> None:
    move(client, name, about(None, "1"))
    moves._write(client, name, about("1", "2"), f"models:/{name}/2")  # it won, and died before the alias moved
    assert holder(client, name) == "1"
    assert settled(client, name, "staging", BY) == "2"
    assert (holder(client, name), holder(client, name, "staging-previous")) == ("2", "1")
    assert history(name)[-1].done


def test_an_entry_that_was_written_twice_counts_once(client: MlflowClient, name: str) -> None:
    """A client that heard no answer writes again: its second entry must not move the alias back to life later."""
    attempt = moves._write(client, name, about(None, "1"), f"models:/{name}/1")
    move(client, name, about("1", "2"))
    tags = {key: value or "" for key, value in about("2", "1").items()} | {"attempt": attempt}
    client.create_model_version(f"{name}.moves", f"models:/{name}/1", tags=tags)
    assert [one.valid for one in history(name)] == [True, True, False]
    assert settled(client, name, "staging", BY) == "2"


def test_a_move_by_hand_is_observed(client: MlflowClient, name: str) -> None:
    move(client, name, about(None, "1"))
    client.set_registered_model_alias(name, "staging", "5")
    assert settled(client, name, "staging", BY) == "5"
    seen = history(name)[-1]
    assert (seen.kind, seen.from_, seen.to, seen.valid) == ("observed", "1", "5", True)
    client.delete_registered_model_alias(name, "staging")
    assert settled(client, name, "staging", BY) is None
    move(client, name, about(None, "2"))
    assert holder(client, name) == "2"
    assert held_before(history(name), "staging") == ["1", "5", "2"]


def test_a_holder_that_was_deleted_is_no_obstacle(client: MlflowClient, name: str) -> None:
    move(client, name, about(None, "1"))
    move(client, name, about("1", "2"))
    client.delete_model_version(name, "2")
    assert settled(client, name, "staging", BY) is None
    move(client, name, about(None, "3"))
    assert (holder(client, name), holder(client, name, "staging-previous")) == ("3", "1")


def test_rollbacks_take_away_from_who_held_it(client: MlflowClient, name: str) -> None:
    for before, to, kind in ((None, "1", "promote"), ("1", "2", "promote"), ("2", "3", "forced")):
        move(client, name, about(before, to, kind))
    move(client, name, about("3", "2", "rollback"))
    assert held_before(history(name), "staging") == ["1", "2"]
    assert holder(client, name, "staging-previous") == "1"
    move(client, name, about("2", "1", "rollback"))
    assert held_before(history(name), "staging") == ["1"]
    assert holder(client, name, "staging-previous") is None
    move(client, name, about("1", "4"))
    assert held_before(history(name), "staging") == ["1", "4"]


def _race(uri: str, name: str, to: str, start: Barrier, told: "multiprocessing.Queue[tuple[str, bool]]") -> None:
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    holder = settled(client, name, "staging", BY)
    start.wait()
    try:
        move(client, name, about(holder, to))
        told.put((to, True))
    except Lost:
        told.put((to, False))


@pytest.mark.slow
def test_of_processes_that_race_one_wins(client: MlflowClient, name: str) -> None:
    context = multiprocessing.get_context("spawn")
    told, start, uri = context.Queue(), context.Barrier(3), client.tracking_uri
    racers = [context.Process(target=_race, args=(uri, name, str(to), start, told)) for to in range(1, 4)]
    for one in racers:
        one.start()
    found = [told.get(timeout=150) for _ in racers]
    for one in racers:
        one.join()
    (winner,) = [to for to, won in found if won]
    assert holder(client, name) == winner
    assert [one.to for one in history(name) if one.valid] == [winner]
    assert len(history(name)) == len(racers)
