"""What transformers' Trainer leaves out when it goes on from a checkpoint."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class Resumed(TrainerCallback):
    """Puts back, before the first step, what an exact resume needs beside the trainer's own.

    Callbacks that count (early stopping) start at zero in the trainer; the best model is lost where the folder was
    moved; intervals of the checkpoint win over changed settings; and where training had ended in the middle of an
    epoch, one step more would be taken.
    """

    def __init__(self, trainer: Any, checkpoint: Path, best: str | None) -> None:
        self._trainer, self._checkpoint, self._best = trainer, checkpoint, best

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.best_model_checkpoint = str(self._checkpoint.with_name(self._best)) if self._best else None
        state.compute_steps(args, state.max_steps)
        counting = [one for one in self._trainer.callback_handler.callbacks if isinstance(one, ExportableState)]
        for one in counting:
            kept = state.stateful_callbacks.get(type(one).__name__)
            for name, value in (kept["attributes"] if isinstance(kept, dict) else {}).items():
                setattr(one, name, value)
        if state.global_step >= state.max_steps or any(_is_out_of_patience(one) for one in counting):
            self._trainer._run_epoch = self._no_step

    def _no_step(self, **_: Any) -> None:
        del self._trainer._run_epoch
        self._trainer.control.should_training_stop = True


def _is_out_of_patience(callback: Any) -> bool:
    patience = getattr(callback, "early_stopping_patience", None)
    return patience is not None and callback.early_stopping_patience_counter >= patience
