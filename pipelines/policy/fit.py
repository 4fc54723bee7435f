"""What every training stage shares: run a trainer, resume it, stop it cleanly, hand over the adapter."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipelines import stopping
from pipelines.compute import ranks
from pipelines.compute.strategy import check_in_force, trained_state, trainer_arguments
from pipelines.config.schema import Config, Model
from pipelines.errors import UserError
from pipelines.policy.base import template_switches
from pipelines.policy.checkpoints import CHECKPOINTS, STATE, hold, newest_checkpoint, sealed
from pipelines.policy.health import Health
from pipelines.policy.in_force import in_force
from pipelines.policy.optimizer import check
from pipelines.policy.out_of_memory import told_if_too_large
from pipelines.policy.resuming import Resumed
from pipelines.policy.saving import EpochStart, SealedSaves
from pipelines.policy.spikes import Spikes
from pipelines.policy.start import ADAPTER, save_over_published_base
from pipelines.policy.template import digest_of_template
from pipelines.progress import Meter, meter, say

UNORDERED = ("target_modules", "exclude_modules")
START = "start"  # the untrained adapter, where its start took weights from the base

Log = Callable[[Mapping[str, float], int], None]
BeginAt = Callable[[int, Sequence[Mapping[str, float]]], None]


@dataclass(frozen=True)
class Fitted:
    """What training came to."""

    steps: int
    seconds: float
    history: list[dict[str, float]]
    resumed_from: int


def trainer_settings(cls: type, field: str, config: Config, work: Path) -> Any:
    """The settings of a TRL trainer from the mapping at `field`; raises UserError where the class refuses a value."""
    block, name = field.split(".")
    try:
        settings = cls(
            output_dir=str(ranks.shared(work) / CHECKPOINTS),
            seed=config.seed,
            use_cpu=config.compute.device == "cpu",
            bf16=config.compute.dtype == "bfloat16",
            fp16=config.compute.dtype == "float16",
            report_to=[],
            disable_tqdm=True,
            **trainer_arguments(config.compute),
            **getattr(getattr(config, block), name),
        )
        settings.asked = (config.compute.strategy, config.compute.num_processes * config.compute.num_nodes)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{field}: {' '.join(str(error).split())}") from None
    check(settings, field)
    return settings


@dataclass(frozen=True)
class Course:
    """How a training is followed.

    `terms` are what a resume may not change, beside what the trainer says of itself; `steps_at_once` optimizer steps
    share what was generated for them; `begin_at` is told the step and the logs that training goes on from.
    """

    rows_per_step: int
    terms: Mapping[str, Any]
    steps_at_once: int = 1
    begin_at: BeginAt | None = None
    spikes: Spikes | None = None


def fit(trainer: Any, log: Log, course: Course) -> Fitted:
    """Trains to the end, from the newest whole checkpoint where there is one.

    SIGTERM and Ctrl-C end it after the current step, or after the last of those that share what was generated, with a
    checkpoint written (raises Stopped). Raises UserError within a step where loss, gradient or weights stop being
    finite, or where the checkpoint was written under other terms; Refused where a loss spike ends the run, TooLarge
    where memory runs out.
    """
    check_in_force(trainer)
    folder = Path(trainer.args.output_dir)
    contract = {**course.terms, **in_force(trainer, folder.parent / START)}
    checkpoint = newest_checkpoint(folder)
    start = _go_on(trainer, checkpoint, contract, course.begin_at)
    trainer.remove_callback(PrinterCallback)
    total = planned_steps(trainer)
    epoch_start = EpochStart(checkpoint)
    saving, health = SealedSaves(trainer, contract, epoch_start), Health(trainer, log, course.spikes)
    with saving as saves, stopping.deferred() as deferral, meter("training", total, "steps") as shown, health:
        shown.begin_at(start)
        trainer.add_callback(_Watch(deferral, log, shown, course, saves))
        trainer.add_callback(epoch_start)
        with told_if_too_large(trainer, start):
            output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _refuse_non_finite(trainer.model)
    return Fitted(output.global_step, output.metrics["train_runtime"], _history(trainer.state), start)


def _go_on(trainer: Any, checkpoint: Path | None, contract: Mapping[str, Any], begin_at: BeginAt | None) -> int:
    """The step that training begins from, everything told that has to know it."""
    step, history = 0, []
    if checkpoint:
        hold(checkpoint, contract)
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        step, history = int(state["global_step"]), state["log_history"]
        say(f"  going on from step {step}")
        trainer.add_callback(Resumed(trainer, checkpoint, sealed(checkpoint)["best"]))
    if begin_at:
        begin_at(step, history)
    return step


def planned_steps(trainer: Any) -> int:
    """Optimizer steps of the whole run."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    per_epoch = math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps)
    return math.ceil(per_epoch * args.num_train_epochs)


def _history(state: TrainerState) -> list[dict[str, float]]:
    # Durations differ from run to run; what is kept must not.
    clocks = ("runtime", "per_second", "step_time")
    return [{k: v for k, v in entry.items() if not k.endswith(clocks)} for entry in state.log_history]


def _refuse_non_finite(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise UserError(f"training ended with values in {name} that are not finite; lower the learning rate")


def hand_over(config: Config, trainer: Any, tokenizer: Any, fitted: Fitted, work: Path) -> dict[str, Any]:
    """Leaves the adapter and its history in `work`, without what only training needed; returns what it is made of."""
    state = trained_state(trainer.model) if ranks.world_size() > 1 else None
    ranks.barrier()  # nobody reads a checkpoint any more
    if ranks.is_main():
        save_adapter(trainer, tokenizer, config.model, work, state)
        for folder in (work / CHECKPOINTS, work / START):
            shutil.rmtree(folder, ignore_errors=True)
    (work / "training.json").write_text(json.dumps(fitted.history, indent=1) + "\n", encoding="utf-8")
    say(f"  {fitted.steps} steps in {fitted.seconds:.0f} s")
    return {
        "base": {"id": config.model.id, "revision": config.model.revision, "license": config.model.license.id},
        "adapter": config.adapter.name,
        "quantized": config.adapter.quantization is not None,
        "template": digest_of_template(tokenizer, template_switches(config.model)),
        "seed": config.seed,
        "steps": fitted.steps,
    }


def save_adapter(
    trainer: Any, tokenizer: Any, model: Model, folder: Path, state: Mapping[str, Any] | None = None
) -> None:
    """Adapter, tokenizer, chat template and generation settings, naming the base by id and pinned revision.

    Below `folder` lies the untrained adapter where the adapter's start changed the base. `state` holds what was
    trained by name where ranks held shards of it; null takes it from the model.
    """
    if (start := folder / START).exists():
        save_over_published_base(trainer.model, folder, start)
    else:
        # A reference that TRL keeps beside it is no part of what was trained.
        trainer.model.save_pretrained(str(folder), selected_adapters=[ADAPTER], state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # peft's blank form; it says nothing of this adapter
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": model.id, "revision": model.revision}
    # Sets of peft's, written in an order that differs from process to process.
    settings |= {name: sorted(settings[name]) for name in UNORDERED if isinstance(settings.get(name), list)}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(str(folder))
    trainer.model.get_base_model().generation_config.save_pretrained(str(folder))


class _Watch(TrainerCallback):
    """Progress, metrics, and two reasons to stop: a signal, and a loss of the validation rows that is no number."""

    def __init__(self, deferral: stopping.Deferral, log: Log, shown: Meter, course: Course, saves: SealedSaves) -> None:
        self.deferral, self.log, self.shown, self.course, self.saves = deferral, log, shown, course, saves
        self.note = ""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.shown.advance(1, f"{self.course.rows_per_step * self.shown.pace():.0f} rows/s{self.note}")
        # A signal reaches ranks at different steps; all have to end after the same one.
        may_end = state.global_step % self.course.steps_at_once == 0
        if may_end and (signum := ranks.highest(self.deferral.signum or 0)):
            self.deferral.signum = signum
            # An evaluation that is due here is made before: without it the resumed run would choose its best model
            # from others, and stop early at another step.
            self.saves.planned = control.should_save
            control.should_save = control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        values = {name: float(value) for name, value in (logs or {}).items() if value is not None}
        if not math.isfinite(loss := values.get("eval_loss", 0.0)):
            raise UserError(f"eval_loss is {loss} at step {state.global_step}; lower the learning rate")
        if "loss" in values:
            # A policy gradient's loss says nothing of how well it goes.
            name = "reward" if "reward" in values else "loss"
            self.note = f", {name} {values[name]:.3f}"
        self.log(values, state.global_step)
