"""Episodes of several turns as MLflow traces: one span a turn of the model's, one a call of a tool."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
from mlflow.entities import SpanType
from mlflow.tracing.constant import TraceMetadataKey

from pipelines.tracking.run import Run, Silent

ROW, STEP, OUTCOME = "tunesmith.row", "tunesmith.step", "tunesmith.outcome"


def log_episode(run: Run, record: Mapping[str, Any]) -> None:
    """Writes a trace of a rollout's record (`pipelines.rewards.rollouts`), whose completion is a transcript."""
    if isinstance(run, Silent):
        return
    prompt, said = json.loads(record["prompt"]), json.loads(record["completion"])
    inputs = {"messages": prompt}
    with mlflow.start_span("episode", SpanType.AGENT, {ROW: record["row_id"], STEP: record["step"]}) as root:
        root.set_inputs(inputs)
        for number, message in enumerate(said):
            _span([*prompt, *said[:number]], message)
        root.set_outputs({"messages": said, "outcome": record["outcome"], "reward": record["reward"]})
        tags = {"tunesmith.run": run.id, ROW: record["row_id"], STEP: str(record["step"]), OUTCOME: record["outcome"]}
        # A worker has no open run that MLflow would name here.
        mlflow.update_current_trace(tags=tags, metadata={TraceMetadataKey.SOURCE_RUN: run.id})


def _span(before: Sequence[Mapping[str, Any]], message: Mapping[str, Any]) -> None:
    if message["role"] == "tool":
        with mlflow.start_span(str(message.get("name") or "tool"), SpanType.TOOL) as span:
            span.set_outputs({"content": message["content"]})
        return
    with mlflow.start_span("assistant", SpanType.CHAT_MODEL) as span:
        span.set_inputs({"messages": list(before)})
        span.set_outputs(dict(message))
