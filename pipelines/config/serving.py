"""The blocks of the stages that put a version behind an address."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.config.block import Block, Count, Length, Name, Text

Kind = Literal["mlflow", "transformers", "vllm"]
ListenPort = Annotated[int, Field(ge=1, le=65535)]
Variable = Annotated[str, Field(pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$")]


class Serve(Block):
    """Which versions answer, by which engine, and where.

    `adapters` are further versions on the same base, each by the name that a request calls it. `poll_s` is how often
    aliases are looked up, null for never. Of the recorded answers `smoke_rows` are asked after the start;
    `smoke_differing` of them may differ. `flags` go to the engine's own program.
    """

    model: Text | None
    engine: Kind
    adapters: dict[Name, Text]
    host: Text
    port: ListenPort
    api_key: Variable | None
    queue: Count
    poll_s: Annotated[float, Field(gt=0)] | None
    start_s: Annotated[float, Field(gt=0)]
    stop_s: Annotated[float, Field(gt=0)]
    smoke_rows: Length
    smoke_differing: Length
    flags: list[Text]

    @model_validator(mode="after")
    def _one_model_in_mlflow(self) -> "Serve":
        if self.engine == "mlflow" and self.adapters:
            raise ValueError("adapters: MLflow's scoring server holds one model; use engine=transformers or vllm")
        if self.engine == "mlflow" and self.api_key:
            raise ValueError("api_key: MLflow's scoring server asks for none; use engine=transformers or vllm")
        return self


class Deploy(Block):
    """Which version the files are for, by which engine, and how many pods answer.

    A pod is added where more than `queue_depth` requests wait at each, as the autoscaler finds it.
    """

    model: Text | None
    engine: Kind
    port: ListenPort
    autoscaler: Literal["hpa", "keda"] | None
    queue_depth: Count
    least: Count
    most: Count
    concurrency: Count

    @model_validator(mode="after")
    def _some_pods(self) -> "Deploy":
        if self.most < self.least:
            raise ValueError(f"most: expected {self.least} (deploy.least) or more, got {self.most}")
        if self.autoscaler == "keda" and self.engine == "mlflow":
            raise ValueError("autoscaler: MLflow's scoring server tells no queue; use hpa, which then looks at the CPU")
        return self
