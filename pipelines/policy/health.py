"""Every step looked at: what is not finite stops the run before anything of it is saved, a loss that jumps is told.

transformers' Trainer logs a loss that is no number as 0.0 (`logging_nan_inf_filter`) and ends as if all were well.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines.errors import UserError
from pipelines.policy.spikes import Spikes
from pipelines.progress import say

SHOWN = 20  # row ids in a message
MOST_SKIPPED = 50  # steps in a row that float16's scaler may skip while it looks for a scale

Named = Callable[[Any], list[str]]  # a micro-batch as the trainer gets it -> the ids of its rows


class Health(TrainerCallback):
    """Holds every step's loss, gradient and weights against being finite, and its loss against those before it.

    What is looked at stays on the device; a step is waited for once, when its weights are changed and before it can be
    saved. With several processes all of them stop. Raises UserError for a value that is not finite.
    """

    def __init__(self, trainer: Any, log: Callable[[dict[str, float], int], None], spikes: Spikes | None) -> None:
        self._trainer, self._log, self._spikes = trainer, log, spikes
        self._names: Named = getattr(trainer, "row_ids", lambda batch: [])
        self._inner = trainer.training_step
        self._parameters: list[tuple[str, torch.nn.Parameter]] = []  # those that are trained
        self._batches: list[Any] = []
        self._losses: list[torch.Tensor] = []
        self._gradients = Sizes()
        self._skipped = 0

    def __enter__(self) -> "Health":
        self._trainer.training_step = self._watched
        self._trainer.add_callback(self)
        return self

    def __exit__(self, *_: object) -> None:
        # Both would keep the trainer and its last batches alive.
        del self._trainer.training_step
        self._trainer.remove_callback(self)
        self._parameters, self._batches, self._losses = [], [], []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Weights that are no numbers before the first step would be told as its loss."""
        self._parameters = [(name, p) for name, p in self._trainer.model.named_parameters() if p.requires_grad]
        if bad := self._weights().not_finite():
            raise UserError(f"step {state.global_step}: weights of {bad} are not finite before a step is made")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._batches, self._losses, self._gradients = [], [], Sizes()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Comes before the trainer logs, evaluates or saves."""
        losses, weights = torch.stack(self._losses), self._weights()
        looked_at = [losses.sum(), _bad(losses), _bad(self._gradients.values), _bad(weights.values)]
        loss, *bad = self._over_all(torch.stack([value.to(losses) for value in looked_at])).tolist()
        if self._may_skip(bad[1]):
            bad[1] = 0.0
        if any(bad):
            self._stop(state.global_step, losses, weights)
        elif self._spikes is not None:
            self._observe(self._spikes, state.global_step, loss / self._trainer.accelerator.num_processes)

    def _watched(self, model: Any, inputs: Any, *further: Any, **named: Any) -> torch.Tensor:
        self._batches.append(inputs)
        loss: torch.Tensor = self._inner(model, inputs, *further, **named)
        self._losses.append(loss.detach().float())
        if self._trainer.accelerator.sync_gradients:
            # Clipping, which comes next, spreads one parameter's NaN over all.
            self._gradients = self._before_the_step()
        return loss

    def _weights(self) -> "Sizes":
        # Of a parameter that DeepSpeed shards, this process's part.
        return Sizes.of((name, getattr(p, "ds_tensor", p)) for name, p in self._parameters)

    def _before_the_step(self) -> "Sizes":
        """The gradients; DeepSpeed keeps its own, of which the norm alone is known."""
        engine = getattr(self._trainer.accelerator, "deepspeed_engine_wrapped", None)
        if engine is None:
            return Sizes.of((name, p.grad) for name, p in self._parameters if p.grad is not None)
        norm = engine.engine.get_global_grad_norm()
        return Sizes() if norm is None else Sizes.of([("a parameter", torch.as_tensor(norm).float().reshape(1))])

    def _over_all(self, values: torch.Tensor) -> torch.Tensor:
        """The sums over all processes."""
        if self._trainer.accelerator.num_processes > 1:
            values = self._trainer.accelerator.reduce(values.double(), reduction="sum")
        return values

    def _may_skip(self, bad: float) -> bool:
        """Whether float16's scaler is looking for a scale: it skips steps whose gradients overflowed."""
        if self._trainer.accelerator.scaler is None:
            return False
        self._skipped = self._skipped + 1 if bad else 0
        return self._skipped <= MOST_SKIPPED

    def _stop(self, step: int, losses: torch.Tensor, weights: "Sizes") -> None:
        # What one process finds in its own batch is told by all.
        found = next((one for one in gather_object([self._found(losses, weights)]) if one), "a value is")
        raise UserError(
            f"step {step}: {found} not finite, and nothing of the step is kept; lower the learning rate, or look at "
            "its rows"
        )

    def _found(self, losses: torch.Tensor, weights: "Sizes") -> str:
        """What was not finite on this process, with its rows; empty where all was."""
        wrong = [batch for batch, loss in zip(self._batches, losses.tolist(), strict=True) if not math.isfinite(loss)]
        if wrong:
            return f"loss{self._of_rows(wrong)} is"
        allowed = self._trainer.accelerator.scaler is not None and self._skipped <= MOST_SKIPPED
        if not allowed and (bad := self._gradients.not_finite()):
            return f"gradient of {bad}{self._of_rows(self._batches)} is"
        bad = weights.not_finite()
        return f"weights of {bad}{self._of_rows(self._batches)} are" if bad else ""

    def _of_rows(self, batches: Sequence[Any]) -> str:
        rows = [row for batch in batches for row in self._names(batch)]
        return f" (rows {_listed(rows)})" if rows else ""

    def _observe(self, spikes: Spikes, step: int, loss: float) -> None:
        was_on = spikes.on
        spike = spikes.observe(step, loss)
        if spikes.on != was_on:
            self._log({"alarm/loss_spike": float(spikes.on)}, step)
        if spike is not None:
            rows = [row for batch in self._batches for row in self._names(batch)]
            if self._trainer.accelerator.num_processes > 1:
                rows = gather_object(rows)
            say(f"  alarm at step {step}: {spike} (rows {_listed(rows)})")
            spikes.tell(spike, list(dict.fromkeys(rows)))


def _listed(rows: Sequence[str]) -> str:
    each = list(dict.fromkeys(rows))
    more = f" and {len(each) - SHOWN:,} more" if len(each) > SHOWN else ""
    return ", ".join(each[:SHOWN]) + more if each else "not known"


@dataclass(frozen=True)
class Sizes:
    """The largest absolute value of each named tensor, NaN where one is in it; on the tensors' device."""

    names: Sequence[str] = ()
    values: torch.Tensor | None = None

    @classmethod
    def of(cls, named: Iterable[tuple[str, torch.Tensor]]) -> "Sizes":
        """In one call for all. Of sharded tensors this process's parts count."""
        parts = [(name, _local(tensor.detach())) for name, tensor in named]
        parts = [(name, part) for name, part in parts if part.numel()]
        if not parts:
            return cls()
        # A sum of squares could overflow where no value does.
        norms = torch._foreach_norm([part for _, part in parts], torch.inf)
        return cls([name for name, _ in parts], torch.stack([norm.float().to(norms[0].device) for norm in norms]))

    def not_finite(self) -> str:
        """The first name whose tensor holds such a value; empty where none does."""
        found = [] if self.values is None else self.values.isfinite().tolist()
        return next((name for name, finite in zip(self.names, found, strict=True) if not finite), "")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _bad(values: torch.Tensor | None) -> torch.Tensor:
    """Whether one of the values is not finite."""
    return torch.tensor(0.0) if values is None else (~values.isfinite()).any().float()
