"""`plan.auto`: micro-batch, accumulation and checkpointing chosen by the plan, the effective batch kept.

What was chosen is printed and stands in the configuration that the run logs, so it can be given again by hand.
"""

from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.planning.fitting import Choice, choose
from pipelines.planning.preflight import check
from pipelines.planning.setting import STAGES, facts_for, job_of, trainer_of
from pipelines.progress import say

KWARGS = "gradient_checkpointing_kwargs"
NAMES = ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", KWARGS)


def settled(stages: list[str], config: Config) -> Config:
    """The configuration with the settings of its training stages chosen, where `plan.auto` asks for it.

    Raises UserError where the machine's memory isn't known, or nothing fits.
    """
    if not config.plan.auto:
        return config
    for stage in (name for name in stages if name in STAGES):
        chosen = chosen_for(stage, config)
        if chosen is None:
            check(stage, config)
            raise UserError(f"plan.auto: no micro-batch of {stage} fits; choose a larger card or a shorter sequence")
        say(f"  {stage}: plan.auto chose {' '.join(overrides(stage, chosen))}")
        config = config.with_trainer(stage, _values(chosen))
    return config


def chosen_for(stage: str, config: Config) -> Choice | None:
    """The plan's choice for one stage on the configured card. Raises UserError where its memory isn't known."""
    if config.compute.device != "cuda" or config.compute.memory_gb is None:
        raise UserError("plan.auto: needs compute.device=cuda and compute.memory_gb, the card's memory")
    accumulation = int(trainer_of(stage, config).get("gradient_accumulation_steps") or 1)
    return choose(facts_for(config), job_of(stage, config), accumulation, config.compute.memory_gb)


def overrides(stage: str, choice: Choice) -> list[str]:
    """The choice as it is given on the command line."""
    told = [f"{stage}.trainer.{name}={str(value).lower()}" for name, value in _values(choice).items() if name != KWARGS]
    return [*told, f"+{stage}.trainer.{KWARGS}={{every_n_layers:{choice.every_n}}}"] if choice.every_n > 1 else told


def _values(choice: Choice) -> dict[str, object]:
    values = (choice.micro_batch, choice.accumulation, choice.checkpointing)
    found: dict[str, object] = dict(zip(NAMES, values, strict=False))
    return {**found, KWARGS: {"every_n_layers": choice.every_n}} if choice.every_n > 1 else found
