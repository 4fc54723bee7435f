"""`resume=FOLDER` through the launcher: another interrupted work folder is gone on from, or refused by name."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import World

SETTINGS = ["sft.trainer.save_steps=1", "sft.trainer.eval_steps=1", "adapter.peft.lora_dropout=0.1"]


@pytest.fixture(scope="module")
def interrupted(finished: World, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The work folder of a run that SIGTERM stopped after its second step."""
    world = World(tmp_path_factory.mktemp("interrupted"), finished.store, finished.model, finished.rows)

    def stop() -> None:
        while not list(world.folder.glob("adapters/*.partial/checkpoints/checkpoint-2")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop)
    watcher.start()
    assert world.run("sft", f"sft.rows={finished.product('rows')}", *SETTINGS) == 143
    watcher.join()
    (work,) = world.folder.glob("adapters/*.partial")
    return work


@pytest.fixture
def rows(finished: World) -> str:
    return f"sft.rows={finished.product('rows')}"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_run_goes_on_from_it_to_the_same_adapter(
    interrupted: Path, world: World, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is watched and what is saved may change; nothing changes in the folder that is gone on from."""
    before = files(interrupted)
    whole = World(tmp_path / "whole", world.store, world.model, world.rows)
    changed = [*SETTINGS, "sft.trainer.logging_steps=2", "sft.trainer.save_total_limit=3"]
    assert whole.run("sft", rows, *changed) == 0
    assert world.run("sft", rows, *changed, f"resume={interrupted}") == 0
    told = capsys.readouterr().out
    assert "resume: checkpoint-" in told
    assert "going on from step " in told
    ours, expected = (one.product("adapter") / "adapter_model.safetensors" for one in (world, whole))
    assert ours.read_bytes() == expected.read_bytes()
    assert files(interrupted) == before
    # Without its checkpoint the run that was interrupted is what it was: `resume` is not what a product hangs on.
    assert world.run("sft", rows, *changed) == 0
    assert "sft: reused" in capsys.readouterr().out


def test_changed_settings_are_refused_by_name(
    interrupted: Path, world: World, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = ["sft.trainer.per_device_train_batch_size=4", "adapter.peft.r=4", "seed=1"]
    assert world.run("sft", rows, *SETTINGS, *changed, f"resume={interrupted}") == 2
    error = capsys.readouterr().err
    assert "sft.trainer.per_device_train_batch_size: the checkpoint was written with 8, got 4" in error
    assert "adapter.peft.r: the checkpoint was written with 8, got 4" in error
    assert "seed: the checkpoint was written with 42, got 1" in error
    assert error.count("the checkpoint was written") == 3
    assert not list(world.folder.glob("adapters/*/checkpoints"))


def test_other_rows_are_refused(
    interrupted: Path, world: World, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.run("prepare", "prepare.validation_share=0.3") == 0
    assert world.run("sft", f"sft.rows={world.product('rows')}", *SETTINGS, f"resume={interrupted}") == 2
    assert "rows: train: the checkpoint was written with" in capsys.readouterr().err


def test_a_folder_without_a_whole_checkpoint_is_refused(
    interrupted: Path, world: World, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(interrupted, damaged)
    for checkpoint in (damaged / "checkpoints").glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").write_bytes(b"")
    for place, told in (
        (tmp_path / "nowhere", "nowhere: no such folder"),
        (tmp_path, "no whole checkpoint; expected some in checkpoints/"),
        (damaged, "optimizer.pt: 0 bytes"),
    ):
        assert world.run("sft", rows, *SETTINGS, f"resume={place}") == 2
        assert told in capsys.readouterr().err
    assert world.run("evaluate", f"resume={interrupted}") == 2
    assert "resume: sft, distill and grpo go on from checkpoints, evaluate has none" in capsys.readouterr().err


def test_one_checkpoint_can_be_named(
    interrupted: Path, world: World, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    oldest = min((interrupted / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    best = json.loads((oldest / "sealed.json").read_text())["best"]
    assert best == oldest.name
    assert world.run("sft", rows, *SETTINGS, "sft.trainer.logging_steps=3", f"resume={oldest}") == 0
    assert f"going on from step {oldest.name[11:]}" in capsys.readouterr().out
