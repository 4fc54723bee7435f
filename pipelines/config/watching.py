"""Blocks of what is watched while a model is trained."""

from typing import Annotated

from pydantic import Field

from pipelines.config.block import Block, Count


class Alarm(Block):
    """Raised while the value is beyond `limit`; null never raises it. `stop` ends the run."""

    limit: Annotated[float, Field(ge=0)] | None
    stop: bool


class LossWatch(Block):
    """What a step's loss is held against: the median of the `window` steps before it.

    `loss_spike.limit` is how many scaled median absolute deviations over it a loss may be.
    """

    window: Count
    loss_spike: Alarm
