"""Trainings that are killed, stopped, damaged and gone on with, in forks of one process; what came of it as JSON.

usage: python -m tests.policy.interrupted FOLDER
"""

import dataclasses
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from benchmarks import compute_damage, compute_kills
from benchmarks.compute_trainings import Training, ended, fresh, outcome, prepared, signalled

KILLS = 4
SAVES = 3  # of the two processes' training, before it is killed


def main(folder: Path) -> None:
    """Everything that needs the imports once."""
    told: dict[str, object] = dict(compute_kills.measure(folder, KILLS))
    training = prepared(folder)
    expected = training.whole(fresh(folder / "whole"), folder / "log")
    told["stopped"] = [stopped_inside(training, folder, step, expected) for step in (3, 6)]
    made = compute_damage.stopped(training, folder)
    cases = list(compute_damage.each(made))
    told["damage"] = {f"{n}: {k}": compute_damage.damaged(made, folder / "damaged", n, k) for n, k in cases}
    told["gone on from an older one"] = from_an_older_one(training, folder, made.parent, expected)
    told["after the last step"] = after_the_last_step(training, folder, expected)
    told["without patience"] = without_patience(training, folder)
    told["changed"] = {name: changed(training, folder, made.parent, name) for name in CHANGES}
    told["two processes"] = two_processes(training, folder)
    print(json.dumps(told))


def stopped_inside(training: Training, folder: Path, step: int, expected: bytes) -> list[object]:
    """SIGTERM inside the save of a step: exit code, what is left of writing, whether the rest came to the same."""
    work = fresh(folder / "stopped")
    writing = work / "checkpoints" / f".writing-{step}"
    code = signalled(training.start(work, folder / "log"), writing.exists, signal.SIGTERM)
    left = [path.name for path in (work / "checkpoints").glob(".*")]
    newest = max(int(path.name.rpartition("-")[2]) for path in (work / "checkpoints").glob("checkpoint-*"))
    return [code, left, newest >= step, training.whole(work, folder / "log") == expected]


def from_an_older_one(training: Training, folder: Path, stopped: Path, expected: bytes) -> bool:
    """The newest checkpoint has a bit flipped in its optimizer, and the whole training comes to the same."""
    work = folder / "older"
    shutil.copytree(stopped, work)
    compute_damage.hurt(work / f"checkpoints/checkpoint-{compute_damage.UNTIL}/optimizer.pt", "flipped")
    return training.whole(work, folder / "log") == expected


def after_the_last_step(training: Training, folder: Path, expected: bytes) -> bool:
    """Killed between the last checkpoint, which is in the middle of an epoch, and the adapter."""
    work = fresh(folder / "last")
    last = work / "checkpoints/checkpoint-8"
    signalled(training.start(work, folder / "log"), last.exists)
    return last.exists() and training.whole(work, folder / "log") == expected


def without_patience(training: Training, folder: Path) -> list[bool]:
    """Early stopping counts on over a kill: it ends where the uninterrupted training ends, also killed right there."""
    impatient = dataclasses.replace(training, overrides=PATIENCE)
    expected = impatient.whole(fresh(folder / "impatient"), folder / "log")
    steps = max(entry["step"] for entry in json.loads((folder / "impatient/training.json").read_text()))
    same = []
    for step in (steps - 1, steps):
        work = fresh(folder / "impatient killed")
        signalled(impatient.start(work, folder / "log"), (work / f"checkpoints/checkpoint-{step}").exists)
        same.append(impatient.whole(work, folder / "log") == expected)
    return [steps < 8, *same]


PATIENCE = ("sft.early_stopping_patience=2", "sft.trainer.learning_rate=0.9")

CHANGES = {
    "a bigger micro-batch": ("sft.trainer.per_device_train_batch_size=8",),
    "rank and rate": ("adapter.peft.r=8", "sft.trainer.learning_rate=0.01"),
    "seed": ("seed=7",),
    "nothing that counts": ("sft.trainer.logging_steps=2", "compute.eval_batch_size=7", "sft.trainer.save_steps=2"),
}


def changed(training: Training, folder: Path, stopped: Path, name: str) -> list[object]:
    """The exit code of a training that goes on under changed settings, and what it says."""
    work, log = folder / "changed", folder / "changed.log"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(stopped, work)
    log.unlink(missing_ok=True)
    code = ended(dataclasses.replace(training, overrides=CHANGES[name]).start(work, log))
    return [code, log.read_text(encoding="utf-8")]


def two_processes(training: Training, folder: Path) -> dict[str, object]:
    """Two processes, both killed behind a save, and gone on with by two and by one."""
    whole = fresh(folder / "two whole")
    codes = [ended(process) for process in pair(training, whole, folder / "log")]
    work = fresh(folder / "two")
    processes = pair(training, work, folder / "log")
    signalled(processes[0], (work / f"checkpoints/checkpoint-{SAVES}").exists)
    os.kill(processes[1], signal.SIGKILL)
    ended(processes[1])
    newest = max((work / "checkpoints").glob("checkpoint-*"))
    files = sorted(json.loads((newest / "sealed.json").read_text())["files"])
    log = folder / "alone.log"
    shutil.copytree(work, folder / "alone")
    alone = ended(training.start(folder / "alone", log))
    # Both have to leave out the damaged one.
    (newest / "rng_state_1.pth").unlink()
    codes += [ended(process) for process in pair(training, work, folder / "log")]
    return {
        "codes": codes,
        "files": files,
        "same": outcome(work) == outcome(whole),
        "alone": [alone, log.read_text(encoding="utf-8")],
    }


def pair(training: Training, work: Path, log: Path) -> list[int]:
    """The ids of two processes that train together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [training.start(work, log, shared | {"RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(2)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
