"""JSON answers: equal to the right one and valid, whatever is thrown at the reader."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.compose import compose
from pipelines.dataset.defects import Defects
from pipelines.dataset.json_schema import same
from pipelines.dataset.read import read_source
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.tasks import Verdict, resolve_verify
from pipelines.tasks.json_schema import strict, verifier

TASK = compose(["task=extraction"]).config.task
PAID = {"amount": 250, "currency": "EUR", "to": "Maria Novak", "date": "2026-05-03", "reference": None}
ANSWER = json.dumps(PAID)


def row(answer: str = ANSWER) -> Row:
    return Row("1", "toy", [{"role": "user", "content": "pay"}], [], answer, "", "toy.jsonl:1", "a")


def with_schema(tmp_path: Path, schema: Any) -> Any:
    (tmp_path / "schema.json").write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return verifier(TASK.model_copy(update={"json_schema": str(tmp_path / "schema.json")}))


@pytest.mark.parametrize(
    "completion",
    [
        ANSWER,
        f"\n  {ANSWER}\n",
        json.dumps(dict(reversed(PAID.items())), indent=2),
        ANSWER.replace("250", "250.0"),
        ANSWER.replace("250", "2.5e2"),
        ANSWER.replace("Maria", "\\u004daria"),
        f"```json\n{ANSWER}\n```",
        f"```\n{ANSWER}\n```  ",
    ],
)
def test_answers_that_are_right(completion: str) -> None:
    assert verifier(TASK)(completion, row()).correct


@pytest.mark.parametrize(
    "completion",
    [
        ANSWER.replace("250", '"250"'),
        ANSWER.replace("250", "250.01"),
        ANSWER.replace("null", '""'),
        ANSWER.replace(', "reference": null', ""),
        ANSWER.replace("}", ', "note": null}'),
        f"[{ANSWER}]",
        json.dumps(PAID | {"to": "maria novak"}),
        json.dumps(PAID | {"amount": True}),
    ],
)
def test_other_json_is_read_and_wrong(completion: str) -> None:
    assert verifier(TASK)(completion, row()) == Verdict(False, completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "250 EUR",
        f"Sure: {ANSWER}",
        f"{ANSWER}\n{ANSWER}",
        f"{ANSWER} // done",
        f"```json\n{ANSWER}\n```\nDone.",
        f"```json\n```json\n{ANSWER}\n```\n```",
        f"```json\n{ANSWER}",
        f"```yaml\n{ANSWER}\n```",
        ANSWER.replace("250", "NaN"),
        ANSWER.replace("250", "1e999"),
        ANSWER.replace('"amount"', '"amount": 1, "amount"'),
        ANSWER.replace('"', "'"),
        "[" * 900,
        "[" * 1_000_000,
        '{"a":' * 200_000,
        "9" * 1_000_000,
        '"' + "a" * 1_000_000 + '"',
        "{" + '"a":1,' * 200_000 + '"a":1}',
        " " * 5000 + "\x00",
    ],
)
def test_what_is_no_json_is_not_parsed(completion: str) -> None:
    assert verifier(TASK)(completion, row()) == Verdict(False, None)


def test_the_audit_takes_no_fence() -> None:
    audit = strict(TASK)
    assert audit(f"{ANSWER}\n", row()).correct
    assert audit(json.dumps(dict(reversed(PAID.items()))), row()).correct
    assert audit(f"```json\n{ANSWER}\n```", row()) == Verdict(False, None)


def test_what_equals_the_answer_has_to_meet_the_schema_too() -> None:
    """Such a row is a fault of the data, which the check of rows' own answers tells."""
    wrong = json.dumps(PAID | {"currency": "JPY"})
    assert verifier(TASK)(wrong, row(wrong)) == Verdict(False, wrong)


def test_any_accepted_answer_is_right() -> None:
    other = json.dumps(PAID | {"reference": "rent"})
    verify, either = verifier(TASK), replace(row(), accepted=[other])
    assert [verify(text, either).correct for text in (ANSWER, other)] == [True, True]
    assert verify(json.dumps(PAID | {"reference": "gift"}), either) == Verdict(
        False, json.dumps(PAID | {"reference": "gift"})
    )


def test_a_pattern_that_never_ends_is_never_tried_on_what_the_model_wrote(tmp_path: Path) -> None:
    """On the text of the wrong answer `(a+)+$` takes ages: longer than a test may last."""
    verify = with_schema(tmp_path, {"type": "string", "pattern": "^(a+)+$"})
    assert verify('"aaaa"', row('"aaaa"')).correct
    assert not verify('"' + "a" * 60 + '!"', row('"aaaa"')).correct


def test_a_schema_that_goes_round_in_circles_ends_where_the_answer_does(tmp_path: Path) -> None:
    verify = with_schema(tmp_path, {"items": {"$ref": "#"}})
    assert verify("[[[]]]", row("[[[]]]")).correct
    assert not verify("[" * 400 + "]" * 400, row("[[[]]]")).correct


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "task.json_schema: .*schema.json: not JSON"),
        ({"type": "objekt"}, "task.json_schema: .*schema.json: no valid JSON schema: /type"),
        (
            {"$ref": "https://example.org/schema"},
            r"task.json_schema: .*\$ref 'https://example.org/schema' leads to nothing",
        ),
        ([], "task.json_schema: .*schema.json: a list, expected an object that is a JSON schema"),
    ],
)
def test_a_file_that_is_no_schema_is_refused(tmp_path: Path, schema: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        with_schema(tmp_path, schema)


def test_a_task_without_a_schema_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.json_schema: json_schema needs the file of a JSON schema"):
        resolve_verify(TASK.model_copy(update={"json_schema": None}))


def test_every_shipped_answer_is_right_and_the_next_rows_is_wrong() -> None:
    verify, audit = verifier(TASK), strict(TASK)
    for source in TASK.sources.values():
        answers = [record.fields["answer"] for record in read_source(source, Defects(1), 10_000)]
        for answer, other in zip(answers, answers[1:] + answers[:1], strict=True):
            assert verify(answer, row(answer)).correct
            assert audit(answer, row(answer)).correct
            assert not verify(other, row(answer)).correct


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("1", "1.0", True),
        ("0", "-0.0", True),
        ("true", "1", False),
        ("null", "false", False),
        ("[1, 2]", "[2, 1]", False),
        ("[1]", "[1, 1]", False),
        ('{"a": [1, {"b": 2}]}', '{"a": [1.0, {"b": 2.0}]}', True),
        ('{"a": null}', "{}", False),
        ("{}", "[]", False),
        ('"1"', "1", False),
        ("9007199254740993", "9007199254740992.0", False),
    ],
)
def test_values_compare_as_json_does(first: str, second: str, equal: bool) -> None:
    assert same(json.loads(first), json.loads(second)) == same(json.loads(second), json.loads(first)) == equal
