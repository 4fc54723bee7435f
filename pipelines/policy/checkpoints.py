"""Checkpoints that are complete or absent: sealed with a hash of every file, looked at again before one is used.

A folder `checkpoint-N` is one only with its `sealed.json`, which the last write but the renaming makes. Whatever kills
a process leaves `.writing-N` behind, which is no checkpoint.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.compute import ranks
from pipelines.errors import UserError
from pipelines.product import digest_of, file_hash
from pipelines.progress import say

CHECKPOINTS = "checkpoints"
SEALED = "sealed.json"
STATE = "trainer_state.json"
WRITING = ".writing-"
REMOVING = ".removing-"
DIGEST = re.compile(r"[0-9a-f]{64}")


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def found(folder: Path) -> list[Path]:
    """The folders that are named as checkpoints, newest first."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(numbered, key=step_of, reverse=True)


def clear(writing: Path) -> None:
    """An empty folder to write a checkpoint into."""
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)


def seal(made: Path, contract: Mapping[str, Any]) -> None:
    """Writes all of `made` to the disk, then `sealed.json`: size and sha256 of every file, and the contract."""
    files = {}
    for name in _files(made):
        path = made / name
        files[name] = {"size": path.stat().st_size, "sha256": file_hash(path)}
    state = json.loads((made / STATE).read_text(encoding="utf-8"))
    best = state["best_model_checkpoint"]
    content = {"files": files, "contract": dict(contract), "best": Path(best).name if best else None}
    path = made / SEALED
    # Were it on the disk before what it vouches for, a power cut could leave it alone there.
    sync_all(made)
    path.write_text(_sealed_text(content), encoding="utf-8")
    _sync(path)
    _sync(made)


def sync_all(folder: Path) -> None:
    """Every file and folder below, and the folder, to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync(path)
    _sync(folder)


def publish(made: Path, place: Path) -> None:
    """Renames a sealed folder to what it is called; of two that are called so the later one stays."""
    if place.exists():
        remove(place)
    made.rename(place)
    _sync(place.parent)


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Leaves `limit` checkpoints: the newest, the best, and of the others those that have their own best one with them.

    Another one could not be gone on from.
    """
    if not limit:
        return
    there = found(folder)
    kept = {path.name for path in there[:1]} | ({Path(best).name} if best else set())
    while len(kept) < limit and (more := _next(there, kept)):
        kept.add(more)
    for path in there:
        if path.name not in kept:
            remove(path)


def remove(checkpoint: Path) -> None:
    """Takes a checkpoint away at once: half of one would be found, and told, as a damaged one."""
    going = checkpoint.with_name(REMOVING + checkpoint.name)
    shutil.rmtree(going, ignore_errors=True)
    checkpoint.rename(going)
    shutil.rmtree(going)


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, naming the file; an empty text where it is as it was sealed."""
    path = checkpoint / SEALED
    if not path.is_file():
        return f"{SEALED}: missing"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        files = dict(content["files"])
    except (ValueError, KeyError, TypeError):
        return f"{SEALED}: cut or changed"
    # Its own digest stands in it; a space that became another character counts as well.
    if text != _sealed_text({name: value for name, value in content.items() if name != "digest"}):
        return f"{SEALED}: changed"
    there = _files(checkpoint)
    for name, expected in files.items():
        if name not in there:
            return f"{name}: missing"
        if (size := (checkpoint / name).stat().st_size) != expected["size"]:
            return f"{name}: {size} bytes, sealed with {expected['size']}"
        if file_hash(checkpoint / name) != expected["sha256"]:
            return f"{name}: its sha256 differs"
    return next((f"{name}: not there when it was sealed" for name in there if name not in files), "")


def damage_with_best(checkpoint: Path) -> str:
    """As `damage`; a checkpoint whose best model so far lies in another one is nothing without that."""
    if wrong := damage(checkpoint):
        return wrong
    best = sealed(checkpoint)["best"]
    if best in (None, checkpoint.name):
        return ""
    wrong = damage(checkpoint.with_name(best)) if checkpoint.with_name(best).is_dir() else "missing"
    return f"its best model, {best}: {wrong}" if wrong else ""


def sealed(checkpoint: Path) -> dict[str, Any]:
    """What `sealed.json` says: files, contract, and the checkpoint of the best model."""
    content: dict[str, Any] = json.loads((checkpoint / SEALED).read_text(encoding="utf-8"))
    return content


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; newer ones that are damaged are named and removed, and what was being written.

    Of several processes the first one looks, and all get what it found. Raises UserError where one doesn't see it.
    """
    checkpoint: Path | None = ranks.from_main(_choose, folder)
    if checkpoint is not None and not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: not to be seen from here; all nodes need one shared folder of checkpoints")
    return checkpoint


def hold(checkpoint: Path, contract: Mapping[str, Any]) -> None:
    """Raises UserError naming each difference between what the checkpoint was written with and `contract`."""
    if differences := differing(sealed(checkpoint)["contract"], contract):
        lines = "\n".join(f"  {line}" for line in differences)
        raise UserError(
            f"{checkpoint} can't be gone on from; set back what was changed, or start over with reuse=false:\n{lines}"
        )


def differing(written: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """One line for each name of which the two mappings say something else."""
    names = sorted(written.keys() | asked.keys())
    return [
        f"{name}: the checkpoint was written with {_shown(written, name)}, got {_shown(asked, name)}"
        for name in names
        if digest_of([written.get(name)]) != digest_of([asked.get(name)]) or (name in written) != (name in asked)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "no such setting"
    value = values[name]
    return value[:12] if isinstance(value, str) and DIGEST.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _choose(folder: Path) -> Path | None:
    for path in folder.glob(f"{WRITING}*"):
        if _files(path):
            say(f"  {path.name} was being written when its process ended; removed")
        shutil.rmtree(path)
    for path in folder.glob(f"{REMOVING}*"):
        shutil.rmtree(path)
    there = found(folder)
    wrongs = [(checkpoint, damage_with_best(checkpoint)) for checkpoint in there]
    for checkpoint, wrong in wrongs:
        if wrong:
            # Left in place it would count as one of those that rotation keeps.
            say(f"  {checkpoint.name} is damaged ({wrong}); removed, an older one is used if there is one")
            remove(checkpoint)
    whole = [checkpoint for checkpoint, wrong in wrongs if not wrong]
    if there and not whole:
        say("  no whole checkpoint is left: training begins at its first step")
    return whole[0] if whole else None


def _next(there: Sequence[Path], kept: Collection[str]) -> str | None:
    """The newest of the others that can be gone on from with what is kept."""
    for path in there:
        if path.name not in kept and (path / SEALED).is_file() and sealed(path)["best"] in (None, path.name, *kept):
            return path.name
    return None


def _sealed_text(content: Mapping[str, Any]) -> str:
    told = {**content, "digest": digest_of(content)}
    return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _files(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if name != SEALED)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
