"""The flow: prepare, the training stages of `flow`, evaluate, package, promote; one run with a child run for each."""

from pathlib import Path

from pipelines.config.compose import as_yaml
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Config
from pipelines.errors import UserError
from pipelines.holding import held
from pipelines.perform import run_stage
from pipelines.product import Product, digest_of
from pipelines.progress import say
from pipelines.resume import wrote
from pipelines.stages import FINGERPRINT_LENGTH, STAGES, named_input
from pipelines.tracking.kept import Kept
from pipelines.tracking.run import Run, started
from pipelines.tracking.source import code_digest

ACCURACY = "eval/correctness/accuracy"
IN_SCOPE = "eval/correctness/num_in_scope"


def run(config: Config) -> None:
    """Runs every stage, handing each product on; a stage whose product is there is reused.

    A flow that was stopped goes on in its own run, with the children that it has. Raises UserError where `resume` is
    of a stage that isn't in the flow.
    """
    resumed = wrote(config.resume) if config.resume else None
    if resumed is not None and resumed not in config.flow:
        raise UserError(f"resume: {config.resume} is of {resumed}, which is not in flow: {', '.join(config.flow)}")
    folder = _place(config)
    kept = Kept(folder, config.tracking.patience_s)
    with held(folder) as hold:
        if not config.reuse:
            kept.forget()
        with started("finetune", {"stage": "finetune"}, kept) as flow:
            hold.names(flow.id)
            made = _stages(config, flow, resumed)
    say(_summary(made))


def _stages(config: Config, flow: Run, resumed: str | None) -> dict[str, Product]:
    """What the stages made, by kind: of two adapters the later one goes on. `resumed` is the stage that goes on."""
    made: dict[str, Product] = {}
    flow.data(as_yaml(config), "config.yaml")
    for name in config.flow:
        stage = STAGES[name]
        inputs = {kind: named_input(stage, config, kind) or made[kind] for kind in stage.wanted(config)}
        asked = config if name == resumed else config.model_copy(update={"resume": None})
        made[stage.kind] = run_stage(stage, asked, inputs)
        flow.tags({f"product.{name}": made[stage.kind].digest})
    flow.metrics(made["scores"].about["metrics"])
    return made


def _place(config: Config) -> Path:
    """Where an unfinished flow of this configuration and code is remembered."""
    decides = [config.model_dump(exclude={"tracking", "reuse"}), code_digest()]
    return PROJECT / config.paths.outputs / "flow" / digest_of(decides)[:FINGERPRINT_LENGTH]


def _summary(made: dict[str, Product]) -> str:
    scores, decision = made["scores"].about, made["decision"].about
    by_subject = {name: scores["subjects"][name].get(ACCURACY) for name in (scores["reference"], scores["candidate"])}
    told = " -> ".join("unjudged" if value is None else f"{value:.1%}" for value in by_subject.values())
    return (
        f"finetune: held-out accuracy {told} on {scores['metrics'][IN_SCOPE]:,.0f} rows; "
        f"models:/{decision['name']}/{decision['version']} is {decision['alias']}"
    )
