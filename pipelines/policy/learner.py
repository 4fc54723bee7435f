"""Who is trained on: the base that training begins from, and the adapter that it has or gets."""

from pathlib import Path
from typing import Any

from peft import PeftModel

from pipelines.compute.ranks import is_main
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.policy import adapter as adapters
from pipelines.policy.base import load_base
from pipelines.policy.checkpoints import CHECKPOINTS
from pipelines.policy.counting import Counts, counted
from pipelines.policy.fit import START
from pipelines.policy.logged import AddsToLogs
from pipelines.policy.memory import keep_freed
from pipelines.policy.moe import experts_left, gigabytes, told
from pipelines.policy.optimizer import attach
from pipelines.policy.packing import PROMPT_METHODS
from pipelines.policy.routing import Routers
from pipelines.policy.start import fit_quantization_error, on_top, save_start
from pipelines.product import Product
from pipelines.progress import say


def load_learner(config: Config, parent: Product | None) -> Any:
    """The base, with `parent`'s adapter on it if there is one, to train on. Raises UserError for another base's."""
    if config.compute.device == "cpu":
        keep_freed()
    base = load_base(config.model, config.adapter, config.compute)
    return base if parent is None else on_top(base, config.model, parent)


def peft_of(config: Config, student: Any) -> Any:
    """The configuration of the adapter that a trainer has to add; None where the student has one."""
    return None if isinstance(student, PeftModel) else adapters.peft_config(config.adapter, config.model)


def begin(config: Config, student: Any, trainer: Any, work: Path) -> None:
    """What the start of a new adapter needs, a look at what it reached and what is stored, and the optimizer.

    `student` is what `load_learner` gave.
    """
    fresh, trained = not isinstance(student, PeftModel), trainer.model
    if fresh:
        if adapters.starts_from_quantization_error(config.adapter):
            fit_quantization_error(trained, config.model)
        if adapters.changes_base(config.adapter) and is_main() and not (work / CHECKPOINTS).exists():
            save_start(trained, work / START)
        adapters.check_attached(trained, config.adapter, config.model)
    counts = counted(trained)
    _tell(config, trained, counts, fresh)
    trainer.add_callback(AddsToLogs(counts.once()))
    if (routers := Routers(trained.get_base_model())).loads:
        trainer.add_callback(AddsToLogs(routers.measures))
    attach(config, trainer)


def _tell(config: Config, trained: Any, counts: Counts, fresh: bool) -> None:
    parts = ", ".join(f"{part.replace('_', ' ')} {size:,}" for part, size in counts.by_part.items())
    say(f"  {config.adapter.name}{'' if fresh else ', trained on'}: {counts.trainable:,} parameters to train ({parts})")
    say(f"  the base is stored in {told(trained)}")
    left = experts_left(trained, config.model)
    if config.adapter.quantization is not None and left:
        say(f"  its experts are not in 4 bit: {gigabytes(left)} of that")


def check_reads_weights(config: Config, method: str) -> None:
    """Raises UserError for adapters that TRL's divergence, which reads the backbone and the head, doesn't see."""
    if config.adapter.method in PROMPT_METHODS:
        raise UserError(f"adapter: distill.method {method} trains lora and ia3 adapters, not {config.adapter.method}")
    if "lm_head" in (config.adapter.peft.get("target_modules") or ()):
        raise UserError(
            f"adapter.peft.target_modules: distill.method {method} reads lm_head's own weight, past an adapter on it; "
            "leave lm_head out"
        )
