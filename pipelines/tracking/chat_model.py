"""The registered model: base + adapter behind MLflow's chat schema; executed by MLflow when it loads a version.

A version carries this file and the package beside it, so it answers with the code that was evaluated.
"""

import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import SpanType
from mlflow.entities.trace_location import MlflowExperimentLocation
from mlflow.pyfunc import PythonModel, PythonModelContext

from pipelines.policy.chat import Decoding, Generated, generate
from pipelines.policy.served import load_served
from pipelines.policy.template import render
from pipelines.release.seal import check_listing
from pipelines.tracking.destination import TRACES


class ChatAdapter(PythonModel):
    """Answers greedily, as the adapter was evaluated; other temperatures are refused."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the pinned base and the adapter. Raises UserError naming the file of either or of ours that changed."""
        settings, adapter = context.model_config, Path(context.artifacts["adapter"])
        check_listing(adapter.parents[1], settings["name"])
        served = load_served(settings, adapter)
        self.model, self.tokenizer, self.template = served.model, served.tokenizer, served.template
        self.max_new_tokens = served.max_new_tokens
        self.name = settings["name"]
        self.lock = threading.Lock()
        self.traces = _destination(os.environ.get(TRACES))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> Any:
        """One chat completion for each record; a single one comes bare, as chat clients expect."""
        records = model_input.to_dict("records")
        answers = [self._answer({str(name): value for name, value in record.items()}) for record in records]
        return answers[0] if len(answers) == 1 else answers

    def _answer(self, record: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in record.items() if not _absent(value)}
        if self.traces is None:
            return self._complete(given)
        with mlflow.start_span("chat", SpanType.CHAT_MODEL, trace_destination=self.traces) as span:
            span.set_inputs(given)
            answer = self._complete(given)
            span.set_outputs(answer)
        return answer

    def _complete(self, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("temperature", 0.0) != 0.0:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(
                f"temperature: expected 0 (answers are greedy, as evaluated), got {given['temperature']}"
            )
        messages = [dict(message) for message in given["messages"]]
        prompt = render(self.tokenizer, [messages], [given.get("tools")], self.template, prompt=True)
        limit = int(given.get("max_tokens", self.max_new_tokens))
        with self.lock:
            answer = generate(self.model, self.tokenizer, prompt, Decoding(limit), batch_size=1)[0]
        return self._response(answer, len(prompt[0]))

    def _response(self, answer: Generated, prompt_tokens: int) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text},
                    "finish_reason": "stop" if answer.finished else "length",
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": answer.num_tokens,
                "total_tokens": prompt_tokens + answer.num_tokens,
            },
        }


def _destination(experiment: str | None) -> MlflowExperimentLocation | None:
    """Where traces go; the experiment is made where the store has none of that name."""
    if not experiment:
        return None
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    return MlflowExperimentLocation(found.experiment_id if found else client.create_experiment(experiment))


def _absent(value: object) -> bool:
    # pandas fills the optional columns of a record with NaN.
    return value is None or (isinstance(value, float) and value != value)


mlflow.models.set_model(ChatAdapter())
