"""The newest checkpoint damaged, file by file: is it noticed, named, and the older one used?

usage: python -m benchmarks.compute_damage
"""

import contextlib
import io
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.compute_trainings import Training, draws, fresh, prepared, signalled

SEED = 11
UNTIL = 5  # the newest checkpoint's step; the one before is in the middle of an epoch, too
KINDS = ("truncated", "flipped", "missing")


def measure(temporary: Path) -> dict[str, int]:
    """Each file of the newest checkpoint truncated, with one bit flipped, and missing.

    Counted as found where the file is named and the older checkpoint is what is gone on from.
    """
    training = prepared(temporary)
    made = stopped(training, temporary)
    cases = [damaged(made, temporary / "damaged", name, kind) for name, kind in each(made)]
    return {"damage_found": sum(cases), "damage_total": len(cases)}


def stopped(training: Training, temporary: Path) -> Path:
    """The checkpoints of a training that was killed behind the one of step `UNTIL`. Raises RuntimeError without two."""
    work = fresh(temporary / "stopped")
    made = work / "checkpoints"
    code = signalled(training.start(work, temporary / "log"), lambda: (made / f"checkpoint-{UNTIL}").exists())
    for path in made.glob(".*"):
        shutil.rmtree(path)
    if code != -signal.SIGKILL or len(list(made.glob("checkpoint-*"))) < 2:
        raise RuntimeError((temporary / "log").read_text(encoding="utf-8")[-4000:])
    return made


def each(made: Path) -> Iterator[tuple[str, str]]:
    """Every file of the newest checkpoint with every kind of damage."""
    newest = max(made.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in sorted(newest.rglob("*")):
        if path.is_file():
            for kind in KINDS:
                yield path.relative_to(made).as_posix(), kind


def damaged(made: Path, folder: Path, name: str, kind: str) -> bool:
    """Whether that damage to a copy of `made` is told, naming the file, and another checkpoint is used."""
    from pipelines.policy.checkpoints import newest_checkpoint

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    hurt(folder / name, kind)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        used = newest_checkpoint(folder)
    checkpoint, _, file = name.partition("/")
    named = f"{checkpoint} is damaged ({file}: " in told.getvalue()
    return named and used is not None and used.name != checkpoint and not (folder / checkpoint).exists()


def hurt(path: Path, kind: str) -> None:
    """Damages a file."""
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        bit = draws(SEED + len(content)).randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(measure(Path(place)))
