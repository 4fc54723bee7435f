"""The blocks of the stages that look at where a version came from."""

from typing import Literal

from pipelines.config.block import Block, Text

# What a version says of its making that this machine may not have; see `pipelines.release.sameness`.
Condition = Literal["code", "lock", "libraries", "base", "sources", "teacher"]


class Reproduce(Block):
    """Which version is made again, and what may differ from when it was made.

    `allow` names what may differ. `judge` differing evaluates only where the adapter isn't bit for bit the same,
    always evaluates in any case. `exact` takes nothing less than bit for bit for reproduced. `keep` leaves what was
    made also where it was reproduced.
    """

    model: Text | None
    allow: list[Condition]
    judge: Literal["differing", "always"]
    exact: bool
    keep: bool


class Lineage(Block):
    """Whose chain is shown, and how it is drawn; `model` may be a registered model's name alone."""

    model: Text | None
    picture: Literal["png", "svg"]
