import json
import socket
from pathlib import Path
from typing import Any, get_args

import pytest

from pipelines.config.schema import Evaluate, Metric, PassAt
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.evaluation.metrics import DEFINITIONS, METRICS, unsupported
from pipelines.evaluation.structured import (
    calls_in,
    calls_need,
    expected_calls,
    fields_need,
    json_fields,
    tool_calls,
    valid_against,
)

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def make_row(completion: list[dict[str, Any]], answer: str = "", accepted: list[str] | None = None) -> Row:
    prompt = [{"role": "user", "content": "?"}]
    return Row("r7", "demo", prompt, completion, answer, "", "demo.jsonl:8", "g", accepted=accepted)


def expecting(value: Any, accepted: list[str] | None = None) -> Row:
    return make_row([{"role": "assistant", "content": json.dumps(value)}], accepted=accepted)


def calling(*calls: tuple[str, Any]) -> Row:
    made = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return make_row([{"role": "assistant", "content": "", "tool_calls": made}])


def settings(json_schema: str | None = None, samples: int | None = None) -> Evaluate:
    asked = PassAt(samples=samples, k=[1], temperature=0.8)
    return Evaluate.model_construct(json_schema=json_schema, pass_at=asked)


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "answer.schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return path


# --- json_valid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ['{"name": "Ada"}', ' \n{"name": "Ada", "age": 36}\n', '{"age": 1.0, "name": ""}'])
def test_answers_that_meet_the_schema(schema: Path, answer: str) -> None:
    assert valid_against(str(schema))(answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        '{"age": 36}',
        '{"name": "Ada", "age": -1}',
        '{"name": "Ada", "age": "36"}',
        '{"name": "Ada", "size": 1}',
        '{"name": "Ada", "name": "Bob"}',
        '{"name": "Ada", "age": NaN}',
        '{"name": "Ada",}',
        "{'name': 'Ada'}",
        '```json\n{"name": "Ada"}\n```',
        'Sure: {"name": "Ada"}',
        '{"name": "Ada"} {"name": "Bob"}',
        '[{"name": "Ada"}]',
        '{"name": "Ada"',
    ],
)
def test_answers_that_dont(schema: Path, answer: str) -> None:
    assert valid_against(str(schema))(answer) == 0.0


def test_without_a_schema_any_json_is_valid() -> None:
    valid = valid_against(None)
    assert [valid(text) for text in ("1", "null", '"text"', "[1, {}]")] == [1.0] * 4
    assert [valid(text) for text in ("text", "[1", "Infinity", "1e400", '{"a": 1, "a": 2}', "[" * 50_000)] == [0.0] * 6


def test_references_within_the_file_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    node = {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    path.write_text(json.dumps({"$id": "https://example.org/tree", "$defs": {"node": node}, "$ref": "#/$defs/node"}))
    valid = valid_against(str(path))
    assert valid('{"child": {"child": {}}}') == 1.0
    assert valid('{"child": {"kid": {}}}') == 0.0
    assert valid('{"child": ' * 900 + "{}" + "}" * 900) == 0.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ('{"type": "string", "type": "number"}', "key 'type' occurs more than once"),
        ("[1]", "a list, expected an object that is a JSON schema"),
        ('{"properties": {"a": {"type": "text"}}}', "no valid JSON schema: /properties/a/type: 'text'"),
        ('{"pattern": "["}', "is not a 'regex'"),
        ('{"items": {"$ref": "#/$defs/node"}}', "$ref '#/$defs/node' leads to nothing in the file"),
        ('{"$ref": "https://example.org/other.json"}', "schemas elsewhere aren't fetched"),
    ],
)
def test_a_schema_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        valid_against(str(path))
    assert str(caught.value).startswith(f"evaluate.json_schema: {path}: ")
    assert reason in str(caught.value)


def test_a_schema_file_that_cant_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.json_schema: .*none\.json: no such file"):
        valid_against(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"evaluate\.json_schema: .*: can't be read"):
        valid_against(str(tmp_path))
    (tmp_path / "latin.json").write_bytes(b'{"title": "\xe9"}')
    with pytest.raises(UserError, match=r"evaluate\.json_schema: .*latin\.json: not UTF-8"):
        valid_against(str(tmp_path / "latin.json"))


def test_an_older_draft_is_read_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer"}')
    # Draft 4 knows no integer that is written as 1.0.
    assert [valid_against(str(path))(text) for text in ("1", "1.0")] == [1.0, 0.0]


# --- json_fields --------------------------------------------------------------------------------


def test_fields_as_counted_by_hand() -> None:
    row = expecting({"name": "Ada", "age": 36, "tags": ["x", "y"], "home": {"city": "London"}})
    same = '{"home": {"city": "London"}, "tags": ["x", "y"], "age": 36.0, "name": "Ada"}'
    assert json_fields(same, row) == 1.0
    assert json_fields('{"name": "Ada", "age": 36, "tags": ["x", "y"]}', row) == pytest.approx(2 * 4 / (5 + 4))
    more = '{"name": "Ada", "age": 37, "tags": ["y", "x"], "home": {"city": "London"}, "job": null}'
    assert json_fields(more, row) == pytest.approx(2 * 2 / (5 + 6))
    assert json_fields('{"tags": ["x"]}', row) == pytest.approx(2 * 1 / (5 + 1))
    assert json_fields("Ada, 36", row) == 0.0
    assert json_fields(f"```\n{same}\n```", row) == 0.0


@pytest.mark.parametrize("value", ["1", True, [1], {"a": 1}, None, [], {}, 1.5])
def test_only_numbers_equal_numbers(value: Any) -> None:
    assert json_fields(json.dumps({"a": value}), expecting({"a": 1})) == 0.0
    assert json_fields(json.dumps({"a": value}), expecting({"a": value})) == 1.0


def test_empty_objects_lists_and_dotted_keys_are_told_apart() -> None:
    assert json_fields('{"a": []}', expecting({"a": {}})) == 0.0
    assert json_fields("{}", expecting({})) == 1.0
    assert json_fields('{"a.b": 1}', expecting({"a": {"b": 1}})) == 0.0
    assert json_fields('{"a": {"0": 1}}', expecting({"a": [1]})) == 0.0


def test_the_best_of_the_right_answers_counts() -> None:
    row = expecting({"city": "London"}, accepted=['{"city": "Greater London", "country": "UK"}'])
    assert json_fields('{"city": "Greater London"}', row) == pytest.approx(2 / 3)
    assert json_fields('{"city": "London"}', row) == 1.0


def test_nesting_without_end_is_just_wrong() -> None:
    deep = '{"a": ' * 900 + "1" + "}" * 900
    assert json_fields(deep, expecting({"a": 1})) == 0.0


def test_rows_that_expect_no_object_are_named() -> None:
    good = expecting({"a": 1})
    assert fields_need([good]) is None
    assert fields_need([good, make_row([], answer='{"a": 2}')]) is None
    assert fields_need([good, make_row([], answer="yes")]) == (
        "row r7 (demo.jsonl:8) expects no JSON object: not JSON: Expecting value at column 1"
    )
    assert fields_need([expecting([1])]) == "row r7 (demo.jsonl:8) expects no JSON object: a list"
    assert fields_need([expecting({"a": 1}, accepted=["a"])]) is not None


# --- tool_calls ---------------------------------------------------------------------------------

WEATHER = ("weather", {"city": "Paris", "days": 2})
TIME: tuple[str, Any] = ("time", {})
FORMS = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"days": 2.0, "city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    "talking": 'Let me see. <tool_call>{"name": "time"}</tool_call> and '
    '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}</tool_call>',
    "unclosed": '<tool_call>{"name": "time", "arguments": {}}<tool_call>'
    '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris", "days": 2}, "id": "123456789"}, '
    '{"name": "time", "arguments": {}}]',
    "list": '[{"name": "time", "parameters": {}}, {"name": "weather", "parameters": {"city": "Paris", "days": 2}}]',
}


@pytest.mark.parametrize("answer", FORMS.values(), ids=FORMS)
def test_calls_are_read_in_every_form(answer: str) -> None:
    assert tool_calls(answer, calling(WEATHER, TIME)) == {"tool_calls": 1.0, "tool_calls_exact": 1.0}
    assert tool_calls(answer, calling(TIME, WEATHER)) == {"tool_calls": 1.0, "tool_calls_exact": 1.0}
    assert tool_calls(answer, calling(WEATHER)) == {"tool_calls": pytest.approx(2 / 3), "tool_calls_exact": 0.0}


def test_a_bare_object_is_a_call() -> None:
    expected = calling(WEATHER)
    bare = '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}'
    assert tool_calls(bare, expected)["tool_calls_exact"] == 1.0
    assert tool_calls(f"<|python_tag|>{bare}", expected)["tool_calls_exact"] == 1.0
    assert calls_in(f"I call {bare}") == []
    assert calls_in('{"name": "weather"}') == []
    assert calls_in("[]") == []


def test_expected_arguments_may_be_text_of_json() -> None:
    as_text = calling(("weather", '{"days": 2, "city": "Paris"}'))
    assert tool_calls(FORMS["hermes"], as_text) == {"tool_calls": pytest.approx(2 / 3), "tool_calls_exact": 0.0}


def test_calls_as_counted_by_hand() -> None:
    def called(*calls: tuple[str, Any]) -> str:
        return "".join(f"<tool_call>{json.dumps({'name': n, 'arguments': a})}</tool_call>" for n, a in calls)

    row = calling(WEATHER, WEATHER, TIME)
    assert tool_calls(called(WEATHER, TIME), row)["tool_calls"] == pytest.approx(4 / 5)
    assert tool_calls(called(WEATHER, WEATHER, WEATHER), row)["tool_calls"] == pytest.approx(4 / 6)
    assert tool_calls(called(("weather", {"city": "Paris", "days": 3})), row)["tool_calls"] == 0.0
    assert tool_calls(called(("weather", {"city": "Paris", "days": 2, "unit": "C"})), row)["tool_calls"] == 0.0
    assert tool_calls(called(("Weather", WEATHER[1])), row)["tool_calls"] == 0.0
    assert tool_calls("It is sunny.", row)["tool_calls"] == 0.0


@pytest.mark.parametrize(
    "call",
    [
        "{oops",
        '{"name": "time", "arguments": "{"}',
        '{"name": "time", "arguments": [1]}',
        '{"arguments": {}}',
        '{"name": 3, "arguments": {}}',
        '["time"]',
        '{"name": "time", "arguments": {}, "arguments": {}}',
    ],
)
def test_a_call_that_cant_be_read_is_a_wrong_one(call: str) -> None:
    answer = f'<tool_call>{call}</tool_call><tool_call>{{"name": "time", "arguments": {{}}}}</tool_call>'
    assert tool_calls(answer, calling(TIME)) == {"tool_calls": pytest.approx(2 / 3), "tool_calls_exact": 0.0}
    assert tool_calls(f"<tool_call>{call}</tool_call>", calling(TIME))["tool_calls"] == 0.0
    assert calls_in(f"<tool_call>{call}</tool_call>") == calls_in(f"[TOOL_CALLS]{call}") == [None]


def test_a_row_without_calls_expects_none() -> None:
    row = make_row([{"role": "assistant", "content": "It is sunny."}])
    assert tool_calls("Sunny.", row) == {"tool_calls": 1.0, "tool_calls_exact": 1.0}
    assert tool_calls(FORMS["hermes"], row) == {"tool_calls": 0.0, "tool_calls_exact": 0.0}


def test_the_first_message_of_a_completion_is_what_answers_the_prompt() -> None:
    first = calling(WEATHER).completion[0]
    later = [{"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "It is sunny."}]
    assert expected_calls(make_row([first, *later])) == expected_calls(calling(WEATHER))
    assert expected_calls(make_row(later[1:])) == expected_calls(make_row([])) == []


def test_rows_that_call_nothing_are_told() -> None:
    assert calls_need([make_row([]), calling(TIME)]) is None
    assert calls_need([make_row([]), expecting(1)]) == "no row's completion begins with a call of a tool"


# --- the metrics that a configuration names -----------------------------------------------------


def test_every_metric_of_the_schema_is_there_and_defined() -> None:
    assert {*METRICS, "accuracy"} == set(get_args(Metric))
    assert set(DEFINITIONS) == {*METRICS, "tool_calls_exact", "pass_at"} - {"pass_at_k"}


def test_scorers_give_the_values_that_are_defined(schema: Path) -> None:
    row = expecting({"name": "Ada"})
    found: dict[str, float] = {}
    for metric in METRICS.values():
        if metric.scorer is not None:
            values = metric.scorer(settings(str(schema)))('{"name": "Ada"}', row)
            assert set(values) == set(metric.definitions)
            found |= values
    assert found == {
        "token_f1": 1.0, "rouge_l": 1.0, "chrf": 1.0, "json_valid": 1.0, "json_fields": 1.0, "tool_calls": 1.0,
        "tool_calls_exact": 1.0,
    }  # fmt: skip


def test_a_row_without_a_reference_has_no_value() -> None:
    scorer = METRICS["token_f1"].scorer
    assert scorer is not None
    assert scorer(settings())("anything", make_row([])) == {}


def test_what_rows_and_settings_cant_support_is_told(schema: Path) -> None:
    rows = [make_row([], answer="yes")]
    reasons = {metric: unsupported(metric, rows, settings()) for metric in (*METRICS, "accuracy")}
    assert reasons.pop("pass_at_k") == "evaluate.pass_at.samples is null, so no samples are drawn"
    assert "row r7 (demo.jsonl:8) expects no JSON object" in str(reasons.pop("json_fields"))
    assert reasons.pop("tool_calls") == "no row's completion begins with a call of a tool"
    assert set(reasons.values()) == {None}
    assert unsupported("chrf", [make_row([])], settings()) == "no row has an answer to compare with"
    assert unsupported("json_valid", [], settings()) == "there is no row"
    assert unsupported("pass_at_k", rows, settings(samples=3)) is None


def test_a_schema_that_is_missing_is_told_before_the_first_answer(tmp_path: Path) -> None:
    scorer = METRICS["json_valid"].scorer
    assert scorer is not None
    with pytest.raises(UserError, match=r"evaluate\.json_schema: .*no such file"):
        scorer(settings(str(tmp_path / "none.json")))
