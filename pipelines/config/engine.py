"""Whose machines a job runs on, and what it is given there."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.config.block import Block, Count, Name, Text

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Port = Annotated[int, Field(ge=1024, le=65535)]
# What Kubernetes and SkyPilot take as a name.
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class Engine(Block):
    """An engine, and the image, memory, storage and variables of each node."""

    name: Name
    kind: Literal["kubernetes", "kubeflow", "skypilot"]
    image: Text | None
    folder: Text
    namespace: Label | None
    runtime: Label | None
    accelerator: Text
    cpus: Count
    memory_gb: Annotated[float, Field(gt=0)]
    shared_memory_gb: Annotated[float, Field(gt=0)] | None
    claim: Label | None
    mount: Annotated[str, Field(pattern=r"^/[^\s:]*$")]
    port: Port
    env: dict[Variable, Text]
    secrets: dict[Variable, Text]

    @model_validator(mode="after")
    def _secrets_are_references(self) -> "Engine":
        for name, reference in self.secrets.items():
            if self.kind != "skypilot" and reference.count("/") != 1:
                raise ValueError(f"secrets.{name}: expected secret/key, the name of a Secret and of its key")
            if name in self.env:
                raise ValueError(f"secrets.{name}: it is among env too")
        return self


class Job(Block):
    """The stage, or the flow, that a job carries out."""

    stage: Literal["prepare", "sft", "generate", "distill", "grpo", "evaluate", "finetune"]
