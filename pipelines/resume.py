"""`resume=FOLDER`: what an interrupted run left is brought into the work folder of another that may go on from it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config.paths import resolve
from pipelines.errors import UserError
from pipelines.progress import say


def wrote(given: str) -> str:
    """The stage whose checkpoints the folder holds. Raises UserError where it has no whole one."""
    from pipelines.policy.checkpoints import sealed

    return str(sealed(_newest(given))["contract"].get("stage"))


def bring(given: str, work: Path, terms: Mapping[str, Any]) -> None:
    """Copies the newest whole checkpoint of a folder, or the one that is named, and what lies beside it, into `work`.

    Nothing is changed where it comes from. What `work` has is kept where it is further. Raises UserError where there is
    no whole checkpoint, or it was written under other `terms`, naming each.
    """
    from pipelines.policy.checkpoints import CHECKPOINTS, differing, found, sealed, step_of

    checkpoint = _newest(given)
    own = found(work / CHECKPOINTS)
    if checkpoint.parent.resolve() == (work / CHECKPOINTS).resolve():
        return
    contract = sealed(checkpoint)["contract"]
    if different := differing({name: value for name, value in contract.items() if _is_asked(name)}, terms):
        lines = "\n".join(f"  {line}" for line in different)
        raise UserError(f"resume: {checkpoint} can't be gone on from under other settings:\n{lines}")
    if own and step_of(own[0]) >= step_of(checkpoint):
        say(f"  resume: {work.name} is at step {step_of(own[0])} already, and goes on from there")
        return
    if checkpoint.parent.name == CHECKPOINTS:
        _copy_beside(checkpoint.parent.parent, work)
    best = sealed(checkpoint)["best"]
    for name in dict.fromkeys([*([best] if best else []), checkpoint.name]):
        _copy(checkpoint.with_name(name), work / CHECKPOINTS)
    say(f"  resume: {checkpoint.name} of {given}")


def _newest(given: str) -> Path:
    from pipelines.policy.checkpoints import CHECKPOINTS, damage_with_best, found

    place = resolve(given)
    if not place.is_dir():
        raise UserError(f"resume: {given}: no such folder; expected the work folder of an interrupted run (*.partial)")
    one = place.name.rpartition("-")
    there = [place] if one[0] == "checkpoint" and one[2].isdigit() else found(place / CHECKPOINTS)
    damaged = []
    for checkpoint in there:
        if not (wrong := damage_with_best(checkpoint)):
            return checkpoint
        damaged.append(f"{checkpoint.name} is damaged ({wrong})")
        say(f"  resume: {damaged[-1]}; an older one is used if there is one")
    raise UserError(f"resume: {given}: no whole checkpoint; {', '.join(damaged) or f'expected some in {CHECKPOINTS}/'}")


def _is_asked(name: str) -> bool:
    """What a trainer says of itself is compared once there is one."""
    from pipelines.policy.in_force import NAMES

    return name not in NAMES


def _copy_beside(source: Path, work: Path) -> None:
    """The untrained adapter, pass rates, rollouts: what a stage keeps for a restart."""
    from pipelines.policy.checkpoints import CHECKPOINTS

    for path in source.iterdir():
        if path.is_dir() and path.name != CHECKPOINTS:
            shutil.copytree(path, work / path.name, dirs_exist_ok=True)
        elif path.is_file():
            shutil.copy2(path, work / path.name)


def _copy(checkpoint: Path, folder: Path) -> None:
    from pipelines.policy.checkpoints import WRITING, clear, damage, publish, sync_all

    writing = folder / f"{WRITING}{checkpoint.name}"
    clear(writing)
    made = writing / checkpoint.name
    shutil.copytree(checkpoint, made)
    if wrong := damage(made):
        raise UserError(f"resume: {checkpoint}: its copy is damaged ({wrong})")
    sync_all(made)
    publish(made, folder / checkpoint.name)
    writing.rmdir()
