"""The flow: prepare, the training stages of `flow`, evaluate, package, promote; one run with a child run for each."""

from pipelines.config.compose import as_yaml
from pipelines.config.schema import Config
from pipelines.perform import run_stage
from pipelines.product import Product
from pipelines.progress import say
from pipelines.stages import STAGES, named_input
from pipelines.tracking.run import started

ACCURACY = "eval/correctness/accuracy"
IN_SCOPE = "eval/correctness/num_in_scope"


def run(config: Config) -> None:
    """Runs every stage, handing each product on; a stage whose product is there is reused."""
    made: dict[str, Product] = {}  # by kind: of two adapters the later one goes on
    with started("finetune", {"stage": "finetune"}) as flow:
        flow.data(as_yaml(config), "config.yaml")
        for name in config.flow:
            stage = STAGES[name]
            inputs = {kind: named_input(stage, config, kind) or made[kind] for kind in stage.wanted(config)}
            made[stage.kind] = run_stage(stage, config, inputs)
            flow.tags({f"product.{name}": made[stage.kind].digest})
        flow.metrics(made["scores"].about["metrics"])
    say(_summary(made))


def _summary(made: dict[str, Product]) -> str:
    scores, version = made["scores"].about, made["version"].about
    by_subject = {name: scores["subjects"][name].get(ACCURACY) for name in (scores["reference"], scores["candidate"])}
    told = " -> ".join("unjudged" if value is None else f"{value:.1%}" for value in by_subject.values())
    return (
        f"finetune: held-out accuracy {told} on {scores['metrics'][IN_SCOPE]:,.0f} rows; "
        f"models:/{version['name']}/{version['version']} is {made['decision'].about['alias']}"
    )
