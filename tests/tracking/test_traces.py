"""Conversations come back from the traces that a deployed model left, in a real store."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.entities import AssessmentSource

from pipelines.config.compose import compose
from pipelines.config.paths import CONF
from pipelines.config.schema import Source, Tracking
from pipelines.dataset.defects import Defects
from pipelines.dataset.read import Record, read_source
from pipelines.errors import UserError
from pipelines.policy.base import pin
from pipelines.product import publish
from pipelines.tracking.destination import TRACES
from pipelines.tracking.registry import write_model
from pipelines.tracking.store import open_store
from tests.dataset.conftest import reported

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is my card?"}]
ANSWER = {"role": "assistant", "content": "On its way."}
TOOL = {"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def experiment(store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An experiment of the test's own, set as the one that traces go to, each before its call returns."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.tracing.reset()
    open_store(Tracking(uri=store, experiment="tunesmith", system_metrics=False, patience_s=0))
    name = f"served {request.node.name}"
    mlflow.set_experiment(name)
    yield name
    mlflow.set_experiment("tunesmith")
    monkeypatch.undo()
    mlflow.tracing.reset()


def source(experiment: str, filter: str | None = None) -> Source:
    defaults = yaml.safe_load((CONF / "source.yaml").read_text(encoding="utf-8"))
    return Source(**(defaults | {"traces": experiment, "filter": filter}))


def read(experiment: str, filter: str | None = None, quarantine: Any = None) -> tuple[list[Record], list[str]]:
    defects = Defects(100, quarantine)
    records = list(read_source(source(experiment, filter), defects, 1_000_000))
    return records, reported(defects)


def leave(inputs: Any, outputs: Any, **metadata: str) -> str:
    """A trace of one call; returns its id."""
    with mlflow.start_span("call") as span:
        span.set_inputs(inputs)
        span.set_outputs(outputs)
        if metadata:
            mlflow.update_current_trace(metadata=metadata)
        with mlflow.start_span("inner") as inner:
            inner.set_inputs({"messages": "not the conversation"})
    return str(span.trace_id)


COMPLETION = {"id": "x", "choices": [{"index": 0, "message": ANSWER | {"refusal": None}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"messages": ASKED, "model": "m"}, COMPLETION),
        ({"messages": ASKED}, {"messages": [ANSWER]}),
        ({"messages": ASKED}, {"messages": [*ASKED, ANSWER]}),
        ({"messages": ASKED}, {"content": "On its way."}),
        ({"messages": ASKED}, "On its way."),
        (ASKED, ANSWER),
        ({"model_input": [{"messages": ASKED}]}, [ANSWER]),
        ({"request": json.dumps({"messages": ASKED})}, json.dumps(COMPLETION)),
    ],
)
def test_a_conversation_is_recognised(experiment: str, inputs: Any, outputs: Any) -> None:
    trace = leave(inputs, outputs)
    (record,), defects = read(experiment)
    assert defects == []
    assert str(record.place) == f"traces:{trace}:1"
    assert record.fields["messages"] == [*ASKED, ANSWER]
    assert "tools" not in record.fields


def test_a_traced_function_of_one_text_is_a_conversation(experiment: str) -> None:
    @mlflow.trace
    def reply(question: str) -> str:
        return f"You asked: {question}"

    reply("why?")
    (record,), _ = read(experiment)
    assert record.fields["messages"] == [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "You asked: why?"},
    ]


def test_what_surrounds_a_conversation_is_kept(experiment: str) -> None:
    trace = leave({"messages": ASKED, "tools": [TOOL]}, COMPLETION, **{"mlflow.trace.session": "s-1"})
    human = AssessmentSource(source_type="HUMAN", source_id="reviewer")
    for name, value in (("helpful", False), ("helpful", True), ("tone", "kind")):
        mlflow.log_feedback(trace_id=trace, name=name, value=value, source=human)
    (record,), _ = read(experiment)
    assert record.fields["tools"] == [TOOL]
    assert record.fields["session"] == "s-1"
    assert record.fields["feedback"] == {"helpful": True, "tone": "kind"}
    assert record.fields["trace_id"] == trace
    assert record.fields["time"].endswith("+00:00")
    json.dumps(record.fields)


def test_all_pages_are_read_oldest_first(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.traces._AT_ONCE", 3)
    for number in range(8):
        leave({"messages": ASKED}, f"answer {number}")
        time.sleep(0.002)  # traces of one millisecond follow their random ids
    records, _ = read(experiment)
    assert [record.fields["messages"][-1]["content"] for record in records] == [f"answer {n}" for n in range(8)]
    assert [record.fields["trace_id"] for record in read(experiment)[0]] == [r.fields["trace_id"] for r in records]


def test_other_traces_are_defects_and_failed_ones_are_left_out(experiment: str, tmp_path: Path) -> None:
    def fail() -> None:
        with mlflow.start_span("broken") as span:
            span.set_inputs({"messages": ASKED})
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fail()
    numbers = leave({"a": 1, "b": 2}, 3)
    unanswered = leave({"messages": ASKED}, None)
    asked_back = leave({"messages": ASKED}, {"messages": ASKED})
    tool_last = leave({"messages": ASKED}, {"messages": [ANSWER, {"role": "tool", "content": "7"}]})
    records, defects = read(experiment)
    assert records == []
    assert sorted(defects) == sorted(
        [
            f"traces:{numbers}:1: no conversation: its inputs hold no messages",
            f"traces:{unanswered}:1: no conversation: its outputs hold no answer",
            f"traces:{asked_back}:1: no conversation: its outputs don't end with an answer of the assistant",
            f"traces:{tool_last}:1: no conversation: its outputs don't end with an answer of the assistant",
        ]
    )
    with (tmp_path / "quarantine").open("w") as quarantine:
        assert read(experiment, quarantine=quarantine) == ([], [])
    first = json.loads((tmp_path / "quarantine").read_text().splitlines()[0])
    assert first["record"]["info"]["trace_id"] == numbers


def test_a_filter_selects(experiment: str) -> None:
    for version in ("1", "2"):
        with mlflow.start_span("call") as span:
            span.set_inputs({"messages": ASKED})
            span.set_outputs(version)
            mlflow.update_current_trace(tags={"version": version})
    (record,), _ = read(experiment, "tags.version = '2'")
    assert record.fields["messages"][-1]["content"] == "2"
    assert read(experiment, "tags.version = '3'") == (
        [],
        [f"traces:{experiment}: holds no trace that ended well and meets the filter tags.version = '3'"],
    )
    with pytest.raises(UserError, match=r"^filter: "):
        read(experiment, "nonsense is here")


@pytest.fixture
def served(small_model: Path, tmp_path: Path) -> str:
    """The folder of a packaged model with a random adapter, as the registry holds it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    work = tmp_path / "adapter.partial"
    base = AutoModelForCausalLM.from_pretrained(small_model)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(work)
    AutoTokenizer.from_pretrained(small_model).save_pretrained(work)
    adapter = publish(work, tmp_path / "adapter", "adapter", {"run_id": "0"}, {}).folder
    config = compose([f"model.id={small_model}"]).config
    settings = {
        "name": "probe",
        "model": pin(config.model).model_dump(),
        "adapter": config.adapter.model_dump(),
        "compute": config.compute.model_dump(),
        "template": {},
        "max_new_tokens": 4,
    }
    write_model(tmp_path / "model", {"adapter": adapter}, settings, ASKED)
    return str(tmp_path / "model")


def test_a_served_model_leaves_its_conversations(served: str, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = mlflow.pyfunc.load_model(served)
    monkeypatch.setenv(TRACES, f"{experiment} kept")
    model = mlflow.pyfunc.load_model(served)
    silent.predict({"messages": ASKED})
    answer = model.predict({"messages": ASKED, "tools": [TOOL], "max_tokens": 3})
    with pytest.raises(mlflow.exceptions.MlflowException):
        model.predict({"messages": ASKED, "temperature": 0.5})
    (record,), defects = read(f"{experiment} kept")
    assert defects == []
    assert record.fields["messages"] == [*ASKED, answer["choices"][0]["message"]]
    assert record.fields["tools"] == [TOOL]


def test_an_experiment_that_is_not_there(experiment: str) -> None:
    with pytest.raises(UserError, match=f"^traces: no experiment '{experiment}s'; nearest valid name: {experiment}$"):
        read(f"{experiment}s")
