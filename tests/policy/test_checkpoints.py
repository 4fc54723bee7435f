"""Checkpoints are complete or absent, the newest whole one is used, and a resume comes to the very same adapter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.policy import checkpoints
from pipelines.policy.checkpoints import STATE, damage, differing, hold, newest_checkpoint, publish, rotate, seal
from tests.policy.interrupted import KILLS


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of real trainings that were killed and damaged; this process has threads, which no fork survives."""
    command = [sys.executable, "-m", "tests.policy.interrupted", str(tmp_path_factory.mktemp("interrupted"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_adapter(told: dict[str, Any]) -> None:
    assert (told["kills_identical"], told["kills_total"]) == (2 * KILLS, 2 * KILLS)
    assert told["gone on from an older one"]
    assert told["after the last step"]


@pytest.mark.slow
def test_sigterm_inside_a_save_leaves_whole_checkpoints(told: dict[str, Any]) -> None:
    assert told["stopped"] == [[143, [], True, True]] * 2


@pytest.mark.slow
def test_early_stopping_counts_on_over_a_kill(told: dict[str, Any]) -> None:
    assert told["without patience"] == [True, True, True]


@pytest.mark.slow
def test_damage_to_any_file_is_named_and_the_older_checkpoint_used(told: dict[str, Any]) -> None:
    names = {name.partition("/")[2].partition(":")[0] for name in told["damage"]}
    assert names >= {"optimizer.pt", "adapter_model.safetensors", "epoch_start.safetensors", "sealed.json", STATE}
    assert [name for name, found in told["damage"].items() if not found] == []


@pytest.mark.slow
def test_a_resume_refuses_what_changed_and_names_it(told: dict[str, Any]) -> None:
    code, output = told["changed"]["a bigger micro-batch"]
    assert code == 2
    assert "  sft.trainer.per_device_train_batch_size: the checkpoint was written with 4, got 8\n" in output
    code, output = told["changed"]["rank and rate"]
    assert code == 2
    assert "  adapter.peft.r: the checkpoint was written with 4, got 8\n" in output
    assert "  sft.trainer.learning_rate: the checkpoint was written with 0.05, got 0.01\n" in output
    assert "  seed: the checkpoint was written with 42, got 7\n" in told["changed"]["seed"][1]
    code, output = told["changed"]["nothing that counts"]
    assert code == 0, output
    assert "going on from step 5" in output


@pytest.mark.slow
def test_two_processes_seal_one_checkpoint_and_agree_on_it(told: dict[str, Any]) -> None:
    found = told["two processes"]
    assert found["codes"] == [0, 0, 0, 0]
    assert {"rng_state_0.pth", "rng_state_1.pth", "epoch_start_0.safetensors"} <= set(found["files"])
    assert found["same"]
    code, output = found["alone"]
    assert code == 2
    assert "compute.num_processes x compute.num_nodes: the checkpoint was written with 2, got 1" in output
    assert 'compute.strategy: the checkpoint was written with "ddp", got "none"' in output


def made(folder: Path, step: int, best: int | None = None, **contract: Any) -> Path:
    """A sealed checkpoint of a few files."""
    writing = folder / f".writing-{step}" / f"checkpoint-{step}"
    (writing / "global_step").mkdir(parents=True)
    (writing / "global_step" / "shard.pt").write_bytes(bytes(range(100)))
    told = str(folder / f"checkpoint-{best}") if best else None
    (writing / STATE).write_text(json.dumps({"best_model_checkpoint": told}))
    seal(writing, contract)
    publish(writing, folder / f"checkpoint-{step}")
    writing.parent.rmdir()
    return folder / f"checkpoint-{step}"


def test_the_newest_whole_one_is_taken_by_its_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (9, 20, 100):
        made(tmp_path, step)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert capsys.readouterr().out == ""
    (tmp_path / "checkpoint-100" / "global_step" / "shard.pt").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
    assert "checkpoint-100 is damaged (global_step/shard.pt: missing)" in capsys.readouterr().out
    (tmp_path / "checkpoint-20" / "global_step" / "more.pt").write_bytes(b"")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert "(global_step/more.pt: not there when it was sealed)" in capsys.readouterr().out
    (tmp_path / "checkpoint-9" / "sealed.json").unlink()
    assert newest_checkpoint(tmp_path) is None
    assert "no whole checkpoint is left: training begins at its first step" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_what_was_being_written_is_told_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, 3)
    (tmp_path / ".writing-4" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / ".writing-4" / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    (tmp_path / ".removing-checkpoint-1").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert ".writing-4 was being written when its process ended" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_any_flipped_bit_of_the_seal_itself_counts(tmp_path: Path) -> None:
    place = made(tmp_path, 1, rank=8) / "sealed.json"
    content = place.read_bytes()
    for number in range(len(content)):
        place.write_bytes(content[:number] + bytes([content[number] ^ 1]) + content[number + 1 :])
        assert damage(place.parent).startswith("sealed.json: "), number
    place.write_bytes(content)
    assert damage(place.parent) == ""


def test_a_checkpoint_is_nothing_without_its_best_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = made(tmp_path, 2, best=2)
    made(tmp_path, 5, best=2)
    (best / "global_step" / "shard.pt").write_bytes(b"")
    assert newest_checkpoint(tmp_path) is None
    told = capsys.readouterr().out
    assert (
        "checkpoint-5 is damaged (its best model, checkpoint-2: global_step/shard.pt: 0 bytes, sealed with 100)" in told
    )


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 3, 4]),
        (2, None, [3, 4]),
        (1, None, [4]),
        (2, 1, [1, 4]),
        (1, 1, [1, 4]),  # the best one is never among those that go
        (2, 4, [1, 4]),  # of 2 and 3 the best model is 1
        (3, 4, [1, 3, 4]),
    ],
)
def test_rotation_leaves_one_to_fall_back_on(
    tmp_path: Path, limit: int | None, best: int | None, left: list[int]
) -> None:
    for step in (1, 2, 3):
        made(tmp_path, step, best=None if best is None else 1)
    made(tmp_path, 4, best=best)
    rotate(tmp_path, limit, str(tmp_path / f"checkpoint-{best}") if best else None)
    assert sorted(checkpoints.step_of(path) for path in tmp_path.iterdir()) == left


def test_a_contract_names_each_difference(tmp_path: Path) -> None:
    written: dict[str, Any] = {"stage": "sft", "model.id": "a", "gone": None, "weights": [1, 2]}
    asked = {"stage": "grpo", "model.id": "a", "new": 1, "weights": [1, 2]}
    assert differing(written, asked) == [
        "gone: the checkpoint was written with null, got no such setting",
        "new: the checkpoint was written with no such setting, got 1",
        'stage: the checkpoint was written with "sft", got "grpo"',
    ]
    checkpoint = made(tmp_path, 1, **written)
    hold(checkpoint, written)
    with pytest.raises(UserError, match=r'stage: the checkpoint was written with "sft", got "grpo"$'):
        hold(checkpoint, asked)
