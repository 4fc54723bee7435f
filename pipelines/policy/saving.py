"""Every trainer's checkpoints, whatever it writes into them: written beside, sealed, renamed, rotated."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.compute import ranks
from pipelines.policy import checkpoints
from pipelines.policy.checkpoints import STATE, WRITING

EPOCH_START = "epoch_start"


class SealedSaves:
    """Stands around a trainer's own `_save_checkpoint`, which goes on to write what it writes.

    Every process takes part in a save; the first one seals, when all have written. `planned` is False where a signal,
    and not the settings, asked for the checkpoint: it is not among those that the best model is chosen from, which
    would depend on when the signal came.
    """

    def __init__(self, trainer: Any, contract: dict[str, Any], epoch_start: "EpochStart") -> None:
        self._trainer, self._contract, self._epoch_start = trainer, contract, epoch_start
        self._inner = trainer._save_checkpoint
        self.planned = True

    def __enter__(self) -> "SealedSaves":
        self._trainer._save_checkpoint = self._save
        return self

    def __exit__(self, *_: object) -> None:
        del self._trainer._save_checkpoint

    def _save(self, model: Any, trial: Any) -> None:
        trainer = self._trainer
        state, folder = trainer.state, Path(trainer.args.output_dir)
        name = f"checkpoint-{state.global_step}"
        writing = folder / f"{WRITING}{state.global_step}"
        made, best = writing / name, state.best_model_checkpoint
        if ranks.is_main():
            checkpoints.clear(writing)
        ranks.barrier()
        trainer._get_output_dir = lambda trial: str(writing)
        try:
            self._inner(model, trial)
        finally:
            del trainer._get_output_dir
        if state.best_model_checkpoint == str(made):
            state.best_model_checkpoint = str(folder / name) if self.planned else best
        self._epoch_start.save(made, state)
        ranks.barrier()
        if ranks.is_main():
            state.save_to_json(str(made / STATE))  # the best model's place is the one after renaming
            checkpoints.seal(made, self._contract)
            checkpoints.publish(made, folder / name)
            writing.rmdir()
            checkpoints.rotate(folder, trainer.args.save_total_limit, state.best_model_checkpoint)
        ranks.barrier()


class EpochStart(TrainerCallback):
    """Keeps the random state in which the epoch began, for a resume in its middle.

    The trainer's length-grouped sampler shuffles from the global state; a checkpoint holds only the later one, so
    without this a resumed run would see the rest of the epoch in another order.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.resumed = load_file(checkpoint / _file())["state"] if checkpoint else None
        self.state = torch.get_rng_state()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.resumed is not None:
            torch.set_rng_state(self.resumed)
            self.resumed = None
        self.state = torch.get_rng_state()

    def save(self, made: Path, state: TrainerState) -> None:
        """Puts it beside what the trainer has written."""
        ended = state.epoch is not None and state.epoch == round(state.epoch)
        save_file({"state": torch.get_rng_state() if ended else self.state}, made / _file())


def _file() -> str:
    suffix = f"_{ranks.rank()}" if ranks.world_size() > 1 else ""
    return f"{EPOCH_START}{suffix}.safetensors"
