"""The blocks of the stages that move aliases, and the policy that they ask."""

from typing import Literal

from pydantic import Field

from pipelines.config.block import Block, Name, Text


class Promote(Block):
    """Which version goes to which alias."""

    model: Text | None
    to: Name


class Rollback(Block):
    """Which alias goes back to whoever held it before; `model` is the registered model's name."""

    model: Text | None
    alias: Name


class Rule(Block):
    """One bound on one metric of the version's evaluation, and why it is asked."""

    metric: Text
    bound: Literal["at_least", "at_most", "above"]
    value: float
    reason: Text


class Gate(Block):
    """A promotion policy: every rule must pass, and every teacher's licence be among `teacher_licenses` (null: any)."""

    name: Name
    teacher_licenses: list[Text] | None
    rules: dict[str, Rule] = Field(min_length=1)
