"""Conversations of a deployed model, read back from the traces that it left."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.tracing.constant import TraceMetadataKey
from mlflow.tracking import MlflowClient

from pipelines.config.nearest import did_you_mean
from pipelines.config.schema import Source
from pipelines.dataset.defects import Defects, Place
from pipelines.dataset.record import Record
from pipelines.errors import UserError

OLDEST_FIRST = ["timestamp_ms ASC"]  # traces of one millisecond follow their ids
ENDED_WELL = "trace.status = 'OK'"
_AT_ONCE = 100

Message = dict[str, Any]


def trace_records(source: Source, defects: Defects) -> Iterator[Record]:
    """A record for each conversation of the experiment, oldest first; traces that ended in an error are left out.

    Fields: messages, the model's answer being the last; tools where the model had some; trace_id; time, when it
    was asked; session; feedback, the newest value that people or judges gave under each name. A trace that is no
    conversation is a defect of `traces:<id>`. Raises UserError where there is no such experiment, or where
    MLflow can't read the filter.
    """
    empty = True
    for trace in _found(_experiment(str(source.traces)), source.filter):
        empty = False
        place = Place(f"traces:{trace.info.trace_id}", 1)
        try:
            fields = _fields(trace)
        except ValueError as error:
            defects.add(place, f"no conversation: {error}", raw=trace.to_dict)
        else:
            yield Record(place, fields)
    if empty:
        reason = "holds no trace that ended well" + (f" and meets the filter {source.filter}" if source.filter else "")
        defects.add(Place(f"traces:{source.traces}"), reason)


def _experiment(name: str) -> str:
    client = MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        held = [experiment.name for experiment in client.search_experiments()]
        raise UserError(f"traces: no experiment {name!r}{did_you_mean(name, held)}")
    return str(found.experiment_id)


def _found(experiment: str, condition: str | None) -> Iterator[Trace]:
    """The traces that ended well, a page at a time."""
    client, page = MlflowClient(), None
    condition = f"{ENDED_WELL} AND {condition}" if condition else ENDED_WELL
    while True:
        try:
            found = client.search_traces(
                locations=[experiment],
                filter_string=condition,
                max_results=_AT_ONCE,
                order_by=OLDEST_FIRST,
                page_token=page,
            )
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(f"filter: {error.message}") from None
        yield from found
        page = found.token
        if not page:
            return


def _fields(trace: Trace) -> dict[str, Any]:
    """Raises ValueError saying what keeps the trace from being a conversation."""
    root = next((span for span in trace.data.spans if span.parent_id is None), None)
    if root is None:
        raise ValueError("the trace has no root span")
    given = _inner(_as_json(root.inputs))
    asked = _asked(given)
    fields = {
        "messages": asked + _answered(asked, _as_json(root.outputs)),
        "trace_id": trace.info.trace_id,
        "time": datetime.fromtimestamp(trace.info.request_time / 1000, UTC).isoformat(),
        "session": trace.info.trace_metadata.get(TraceMetadataKey.TRACE_SESSION),
        "feedback": _feedback(trace),
    }
    tools = given.get("tools") if isinstance(given, Mapping) else None
    return fields | ({"tools": tools} if tools else {})


def _as_json(value: Any) -> Any:
    """A span's inputs as they were, where a tracer wrote them down as JSON in a text."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _inner(inputs: Any) -> Any:
    """What a traced function was asked: its only argument, or the only record of a batch."""
    if isinstance(inputs, Mapping) and "messages" not in inputs and len(inputs) == 1:
        inputs = _as_json(next(iter(inputs.values())))
    if isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], Mapping) and "messages" in inputs[0]:
        return inputs[0]
    return inputs


def _asked(given: Any) -> list[Message]:
    messages = given.get("messages") if isinstance(given, Mapping) else given
    if isinstance(messages, str) and messages.strip():
        return [{"role": "user", "content": messages}]
    return _messages(messages, "its inputs hold no messages")


def _answered(asked: list[Message], outputs: Any) -> list[Message]:
    """The messages that follow what was asked; the last is the model's."""
    found = _completion(outputs)
    messages = _messages(found, "its outputs hold no answer")
    if messages[: len(asked)] == asked:
        messages = messages[len(asked) :]
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("its outputs don't end with an answer of the assistant")
    return messages


def _completion(outputs: Any) -> Any:
    """A chat completion's first choice, messages, one message, or a text, as a list of messages."""
    if isinstance(outputs, str) and outputs.strip():
        return [{"role": "assistant", "content": outputs}]
    if not isinstance(outputs, Mapping):
        return outputs
    if "messages" in outputs:
        return outputs["messages"]
    choices = outputs.get("choices") or [{"message": outputs}]
    message = choices[0].get("message") if _is_objects(choices) else None
    return [{"role": "assistant", **message}] if isinstance(message, Mapping) and "content" in message else None


def _messages(value: Any, reason: str) -> list[Message]:
    if not _is_objects(value) or not all(isinstance(item.get("role"), str) for item in value):
        raise ValueError(reason)
    # OpenAI's objects name every field they could have.
    return [{name: part for name, part in item.items() if part is not None or name == "content"} for item in value]


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _feedback(trace: Trace) -> dict[str, Any]:
    """The newest valid value of each name."""
    given = [
        assessment for assessment in trace.info.assessments if assessment.feedback and assessment.valid is not False
    ]
    given.sort(key=lambda assessment: (assessment.create_time_ms or 0, assessment.assessment_id or ""))
    return {assessment.name: assessment.feedback.value for assessment in given}
