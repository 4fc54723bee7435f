"""What a run logs arrives once and in order, whatever the tracking server does meanwhile."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.config.schema import Tracking
from pipelines.errors import Refused
from pipelines.tracking.kept import Kept
from pipelines.tracking.run import Silent, attached, started
from pipelines.tracking.sending import Unsent, send
from pipelines.tracking.spool import Sender, Spool
from pipelines.tracking.store import open_store
from tests.tracking.servers import Server

STEPS = 120


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "adapter", patience_s=60)


@pytest.fixture
def opened(store: str) -> str:
    open_store(Tracking(uri=store, experiment="tunesmith", system_metrics=False, patience_s=0))
    return store


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    open_store(Tracking(uri=running.address, experiment="tunesmith", system_metrics=False, patience_s=0))
    return running


def curve(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run_id, name)]


def whole(steps: int) -> list[tuple[int, float]]:
    return [(step, step / 7) for step in range(1, steps + 1)]


def test_entries_sent_twice_are_there_once(opened: str) -> None:
    with started("twice", {}) as run:
        pass
    entries = [
        {"kind": "metrics", "values": {"loss": step / 7, "nan": float("nan")}, "step": step, "at": 1000 + step}
        for step in range(1, 6)
    ]
    entries += [{"kind": "tags", "values": {"t": "1"}}, {"kind": "params", "values": {"p": "1"}}]
    entries += [{"kind": "input", "name": "rows", "place": "/rows", "digest": "d" * 64, "context": "train"}]
    send(run.id, entries[:3])
    send(run.id, entries)
    send(run.id, entries)
    assert curve(run.id, "loss") == whole(5)
    assert len(curve(run.id, "nan")) == 5
    stored = MlflowClient().get_run(run.id)
    assert stored.data.metrics["loss"] == 5 / 7
    assert (stored.data.params, stored.data.tags["t"]) == ({"p": "1"}, "1")
    assert len(stored.inputs.dataset_inputs) == 1


def test_a_frozen_server_holds_up_no_step_and_gets_every_point_once(server: Server, kept: Kept) -> None:
    """Every step is taken while the server can't answer; when it can, it has them all, the file and the table too."""
    with started("frozen", {}, kept) as run:
        run.metrics({"loss": 1 / 7}, 1)
        assert run.settle(60) == 0
        server.freeze()
        for step in range(2, STEPS + 1):
            run.metrics({"loss": step / 7}, step)
        run.table([{"a": 1}], "some/table.json")
        assert run.settle(1) == STEPS + 1
        server.thaw()
    stored = MlflowClient().get_run(run.id)
    assert stored.info.status == "FINISHED"
    assert curve(run.id, "loss") == whole(STEPS)
    assert stored.data.metrics["loss"] == STEPS / 7
    assert json.loads(stored.data.tags["mlflow.loggedArtifacts"]) == [{"path": "some/table.json", "type": "table"}]
    assert mlflow.load_table("some/table.json", run_ids=[run.id]).a.tolist() == [1]
    assert not kept.folder.exists()


def test_a_server_killed_in_the_middle_gets_the_rest_when_it_is_back(server: Server, kept: Kept) -> None:
    with started("killed", {}, kept) as run:
        for step in range(1, STEPS + 1):
            run.metrics({"loss": step / 7}, step)
            if step == STEPS // 2:
                server.kill()
        back = threading.Timer(3, server.start)
        back.start()
    back.join()
    assert curve(run.id, "loss") == whole(STEPS)
    assert MlflowClient().get_run(run.id).info.status == "FINISHED"


def test_an_answer_that_is_lost_makes_no_second_point(server: Server, kept: Kept) -> None:
    """The server takes a batch while the client has stopped waiting for its answer, and sends it again."""
    with started("slow", {}, kept) as run:
        server.freeze()
        run.metrics({"loss": 1 / 7}, 1)
        run.settle(8)  # two calls of three seconds are in the frozen server's queue
        server.thaw()
        run.metrics({"loss": 2 / 7}, 2)
    assert curve(run.id, "loss") == whole(2)


def test_a_server_that_stays_away_leaves_the_rest_to_the_next_start(server: Server, kept: Kept) -> None:
    impatient = Kept(kept.product, patience_s=0.5)

    def away() -> None:
        with started("away", {}, impatient) as run:
            run.settle(60)
            server.kill()
            for step in range(1, 4):
                run.metrics({"loss": step / 7}, step)

    with pytest.raises(Unsent, match=r"3 entries of run \w+ are kept in"):
        away()
    assert mlflow.active_run() is None
    run_id = kept.run_id()
    assert run_id
    server.start()
    with started("away", {}, kept) as again:
        assert again.id == run_id
    assert curve(run_id, "loss") == whole(3)
    assert MlflowClient().get_run(run_id).info.status == "FINISHED"


def failed(kept: Kept, points: int) -> str:
    """The id of a run that logs some steps and fails."""

    def fail() -> None:
        with started("sft", {}, kept) as run:
            run.metrics({"rows": 5.0})
            for step in range(1, points + 1):
                run.metrics({"loss": step / 7, "seconds": 1.0}, step)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    return str(kept.run_id())


def test_a_run_that_goes_on_repeats_no_step(opened: str, kept: Kept) -> None:
    first = failed(kept, 7)  # its last checkpoint is that of step 4
    with started("sft", {}, kept) as run:
        run.metrics({"rows": 5.0})
        for step in range(5, 11):
            run.metrics({"loss": step / 7, "seconds": 2.0}, step)
        run.metrics({"rows": 6.0})
    assert run.id == first
    assert curve(run.id, "loss") == whole(10)
    assert [value for _, value in curve(run.id, "seconds")] == [1.0] * 7 + [2.0] * 3
    assert curve(run.id, "rows") == [(0, 5.0), (0, 6.0)]
    stored = MlflowClient().get_run(run.id)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics["rows"] == 6.0
    assert stored.data.tags["resumed"] == "1"
    assert "error" not in stored.data.tags


def test_a_line_that_a_dying_process_cut_is_dropped(opened: str, tmp_path: Path) -> None:
    with started("torn", {}) as run:
        pass
    spool = Spool(tmp_path, run.id)
    spool.add({"kind": "metrics", "values": {"loss": 1 / 7}, "step": 1, "at": 1001})
    spool.close()
    with (tmp_path / f"{run.id}.main.jsonl").open("ab") as stream:
        stream.write(b'{"kind": "metrics", "values": {"lo')
    spool = Spool(tmp_path, run.id)
    spool.add({"kind": "metrics", "values": {"loss": 2 / 7}, "step": 2, "at": 1002})
    spool.close()
    Sender(tmp_path, run.id).send_all()
    assert curve(run.id, "loss") == whole(2)


def test_what_the_store_refuses_for_good_ends_the_run_and_is_not_sent_again(opened: str, kept: Kept) -> None:

    def bad() -> None:
        with started("bad", {}, kept) as run:
            run.params({"lr": 1})
            run.params({"lr": 2})
            run.metrics({"loss": 1 / 7}, 1)

    with pytest.raises(mlflow.exceptions.MlflowException, match="Changing param"):
        bad()
    run_id = str(kept.run_id())
    stored = MlflowClient().get_run(run_id)
    assert stored.info.status == "FAILED"
    assert "MlflowException" in stored.data.tags["error"]
    with started("bad", {}, kept) as again:
        pass
    assert again.id == run_id
    assert curve(run_id, "loss") == whole(1)


def test_a_refusal_is_a_result_and_nothing_is_kept_of_it(opened: str, kept: Kept) -> None:
    with pytest.raises(Refused), started("gate", {}, kept) as run:
        raise Refused("no")
    stored = MlflowClient().get_run(run.id)
    assert (stored.info.status, stored.data.tags["refused"]) == ("FINISHED", "no")
    assert not kept.folder.exists()


@pytest.mark.parametrize("gone", ["deleted", "unknown", "elsewhere"])
def test_a_run_that_cannot_go_on_is_said_and_a_new_one_opened(
    gone: str, opened: str, kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    first = failed(kept, 0)
    if gone == "deleted":
        MlflowClient().delete_run(first)
    elif gone == "unknown":
        kept.remember("f" * 32)
    else:
        open_store(Tracking(uri=opened, experiment="elsewhere", system_metrics=False, patience_s=0))
    with started("sft", {}, kept) as run:
        pass
    said = {"deleted": "it was deleted", "unknown": "this store doesn't know it", "elsewhere": "another experiment"}
    assert f"can't go on, {said[gone]}" in capsys.readouterr().out.replace("it is in ", "")
    assert run.id != first
    assert MlflowClient().get_run(run.id).info.status == "FINISHED"


def test_the_run_that_mlflow_run_gives_wins_and_names_the_one_before(
    opened: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = failed(kept, 1)
    experiment = MlflowClient().get_experiment_by_name("tunesmith").experiment_id
    given = MlflowClient().create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with started("sft", {}, kept) as run:
        run.metrics({"loss": 1 / 7}, 1)
    assert run.id == given
    assert MlflowClient().get_run(given).data.tags["resumed_from"] == first
    assert curve(given, "loss") == whole(1)


def test_a_worker_logs_into_the_run_that_its_parent_sends_and_ends(opened: str, tmp_path: Path) -> None:
    work = tmp_path / "adapter.partial"
    with started("parent", {}, Kept.of(work, 60)) as run:
        run.metrics({"parent": 1.0})
        with attached(run.id, work) as worker:
            for step in range(1, 4):
                worker.metrics({"loss": step / 7}, step)
            worker.data("text", "some/note.txt")
            silent = Silent(run.id)
            silent.metrics({"loss": 100.0}, 9)
            silent.data("text", "some/other.txt")
            with silent.system_metrics(True):
                pass
        assert MlflowClient().get_run(run.id).info.status == "RUNNING"
    assert curve(run.id, "loss") == whole(3)
    assert [a.path for a in MlflowClient().list_artifacts(run.id, "some")] == ["some/note.txt"]
    assert MlflowClient().get_run(run.id).info.status == "FINISHED"


def test_machine_metrics_go_on_after_a_resume(opened: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    seen = threading.Event()

    def fail() -> None:
        with started("sft", {}, kept) as run, run.system_metrics(True):
            seen.wait(0.6)
            raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fail()
    steps = [step for step, _ in curve(str(kept.run_id()), "system/cpu_utilization_percentage")]
    assert len(steps) > 2
    assert steps == list(range(len(steps)))
