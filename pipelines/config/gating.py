"""The blocks of the stages that move aliases, and the policy that they ask."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.config.block import Block, Count, Name, Share, Text

PREVIOUS = "-previous"
# As MLflow takes them: it has no dots there.
Alias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
# What the gate itself asks under these names, and what promotion adds.
OWN_RULES = frozenset(
    {"evaluated", "fresh", "own_files", "contamination", "parity", "vllm", "integrity", "race", "result", "policy"}
    | {"license_base", "license_data", "license_teachers", "run", "by", "at", "forced", "copy"}
)


def _check_free(field: str, alias: str) -> None:
    """`latest` and v1 are MLflow's own, and NAME-previous keeps who held NAME before."""
    if alias == "latest" or re.fullmatch(r"v[0-9]+", alias) or alias.endswith(PREVIOUS):
        raise ValueError(f"{field}: {alias!r} can't be moved by hand; expected an alias of your own, such as staging")


class Promote(Block):
    """Which version goes to which alias, of which registered model, on which server.

    `name` null is the version's own name, `registry` null the server of this configuration. `expect` is the version
    that must hold the alias (0: nobody; null: whoever holds it when the decision begins). `force` overrules the gate,
    and says why in `reason`.
    """

    model: Text | None
    to: Alias
    name: Name | None
    registry: Annotated[str, Field(pattern=r"^https?://")] | None
    expect: Annotated[int, Field(ge=0)] | None
    force: bool
    reason: Text | None

    @model_validator(mode="after")
    def _force_has_a_reason(self) -> "Promote":
        _check_free("to", self.to)
        if self.force and self.reason is None:
            raise ValueError("force needs reason, a sentence that is kept with the decision")
        if self.reason is not None and not self.force:
            raise ValueError("reason belongs to force=true")
        return self


class Rollback(Block):
    """Which alias goes back to whoever held it before; `model` is the registered model's name.

    `to` is the number of a version that held it earlier; null is the one before.
    """

    model: Text
    alias: Alias
    to: Count | None
    reason: Text | None

    @model_validator(mode="after")
    def _alias_is_free(self) -> "Rollback":
        _check_free("alias", self.alias)
        return self


class Rule(Block):
    """One bound on one metric of the version's evaluation, and why it is asked; `between` has two values."""

    metric: Text
    bound: Literal["at_least", "at_most", "above", "between"]
    value: float | list[float]
    reason: Text

    @model_validator(mode="after")
    def _has_its_bounds(self) -> "Rule":
        band = self.value if isinstance(self.value, list) else None
        if self.bound == "between" and (band is None or len(band) != 2 or band[0] > band[1]):
            raise ValueError(f"value: bound between has two, the lower one first, such as [0.5, 1.0]; got {self.value}")
        if self.bound != "between" and band is not None:
            raise ValueError(f"value: bound {self.bound} has one number; got {self.value}")
        return self


class Versus(Block):
    """The version against another on the same held-out rows, by the lower end of a paired 95 % interval.

    superior: it is over `margin`; non_inferior: it is over -`margin`. More of the metric must be better.
    """

    against: Literal["base", "incumbent"]
    metric: Text
    ask: Literal["superior", "non_inferior"]
    margin: Share
    reason: Text

    @model_validator(mode="after")
    def _can_be_paired(self) -> "Versus":
        if self.against == "incumbent" and self.metric != "correctness/accuracy":
            raise ValueError(
                f"against incumbent compares verdicts row by row: expected metric correctness/accuracy, "
                f"got {self.metric}"
            )
        return self


class Licenses(Block):
    """Licences that base, data and teachers may have; null: any."""

    base: list[Text] | None
    data: list[Text] | None
    teachers: list[Text] | None


class Evaluation(Block):
    """How old the evaluation may be (null: any age), and whether it must have judged the version's own files."""

    max_age_days: Annotated[float, Field(gt=0)] | None
    own_files: bool


class Loading(Block):
    """Whether vLLM must be able to load the version."""

    vllm: bool


class Loss(Block):
    """How much accuracy an export may lose against the adapter, as a share of 1, and why."""

    max_loss: Share
    reason: Text


class Gate(Block):
    """A promotion policy: every rule must pass.

    `contamination` clean asks for a report that found nothing left, present for a report, null for nothing.
    `exports` names the forms that must have been judged again. `resamples` are those of paired intervals.
    """

    name: Name
    rules: dict[str, Rule] = Field(min_length=1)
    compare: dict[str, Versus]
    resamples: Annotated[int, Field(ge=100)]
    contamination: Literal["clean", "present"] | None
    licenses: Licenses
    parity: bool
    evaluation: Evaluation
    serving: Loading
    exports: dict[str, Loss]

    @model_validator(mode="after")
    def _names_are_apart(self) -> "Gate":
        for name in (*self.rules, *self.compare):
            if name in OWN_RULES or name.startswith("export_"):
                raise ValueError(f"{name}: the gate's own rules have this name; choose another")
        if both := sorted(self.rules.keys() & self.compare.keys()):
            raise ValueError(f"{both[0]}: is among rules and compare; give one of them another name")
        return self
