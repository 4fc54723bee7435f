"""The metrics of answers that a configuration can name, beside the task's own verify."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipelines.config.schema import Evaluate
from pipelines.dataset.row import Row
from pipelines.evaluation import free_text, pass_at, structured

Scorer = Callable[[str, Row], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """How answers get a metric's values, 0..1, and why rows can't support it.

    `scorer` makes the function of (answer, row) that gives a row's values by name, empty where the row has none; it
    is None where a value needs more than one answer. It raises UserError where the settings name no usable schema, or
    a package isn't installed. `needs` is None where rows and settings support the metric. `definitions` hold a
    sentence for each value.
    """

    scorer: Callable[[Evaluate], Scorer] | None
    needs: Callable[[Sequence[Row], Evaluate], str | None]
    definitions: Mapping[str, str]


def _free_text(name: str, settings: Evaluate) -> Scorer:
    score = free_text.ready(name)

    def values(answer: str, row: Row) -> dict[str, float]:
        found = free_text.references(row)
        return {name: score(answer, found)} if found else {}

    return values


def _json_valid(settings: Evaluate) -> Scorer:
    valid = structured.valid_against(settings.json_schema)
    return lambda answer, row: {"json_valid": valid(answer)}


def _json_fields(settings: Evaluate) -> Scorer:
    return lambda answer, row: {"json_fields": structured.json_fields(answer, row)}


def _tool_calls(settings: Evaluate) -> Scorer:
    return structured.tool_calls


def _samples(rows: Sequence[Row], settings: Evaluate) -> str | None:
    return "evaluate.pass_at.samples is null, so no samples are drawn" if settings.pass_at.samples is None else None


METRICS: dict[str, Metric] = {
    name: Metric(partial(_free_text, name), lambda rows, settings: free_text.needs(rows), {name: definition})
    for name, definition in free_text.DEFINITIONS.items()
} | {
    "pass_at_k": Metric(None, _samples, pass_at.DEFINITIONS),
    "json_valid": Metric(
        _json_valid,
        lambda rows, settings: None,
        {"json_valid": structured.DEFINITIONS["json_valid"]},
    ),
    "json_fields": Metric(
        _json_fields,
        lambda rows, settings: structured.fields_need(rows),
        {"json_fields": structured.DEFINITIONS["json_fields"]},
    ),
    "tool_calls": Metric(
        _tool_calls,
        lambda rows, settings: structured.calls_need(rows),
        {name: structured.DEFINITIONS[name] for name in ("tool_calls", "tool_calls_exact")},
    ),
}


# By the values' names; `pass_at` stands for pass_at_1 and so on.
DEFINITIONS: dict[str, str] = {name: text for metric in METRICS.values() for name, text in metric.definitions.items()}


def unsupported(metric: str, rows: Sequence[Row], settings: Evaluate) -> str | None:
    """Why the rows or the settings can't support the metric; None where they can.

    accuracy, which the task's verify decides, isn't judged here.
    """
    if metric not in METRICS:
        return None
    found = METRICS[metric]
    if not rows:
        return "there is no row"
    return found.needs(rows, settings)
