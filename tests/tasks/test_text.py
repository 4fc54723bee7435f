"""The verifiers of texts and numbers: GSM8K's own answers pass, other rows' answers fail."""

import itertools
import json
from dataclasses import replace

import pytest

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.tasks import Verdict, resolve_verify
from pipelines.tasks.text import last_number

GSM8K = compose(["task=gsm8k", "task.verify=number"]).config.task


def row(answer: str) -> Row:
    return Row("1", "toy", [{"role": "user", "content": "a"}], [], answer, "", "toy.jsonl:1", "a")


def test_every_gold_answer_of_gsm8k_passes_and_the_next_rows_fails() -> None:
    verify = resolve_verify(GSM8K)
    lines = (PROJECT / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    for answer, other in itertools.pairwise(answers):
        assert verify(answer, row(answer)).correct
        assert verify(other, row(answer)).correct == (last_number(other) == last_number(answer))
    assert len({last_number(answer) for answer in answers}) > 300


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("1 + 1 = 2\n#### 1,234", True),
        ("it is 1234.0", True),
        ("#### 1234\nor is it?", True),
        ("#### 1234 or 5", False),
        ("-1234", False),
        ("#### none", False),
        ("", False),
    ],
)
def test_the_number_after_the_mark_counts(completion: str, correct: bool) -> None:
    assert resolve_verify(GSM8K)(completion, row("#### 1234")).correct == correct


def test_exact_compares_the_text() -> None:
    verify = resolve_verify(GSM8K.model_copy(update={"verify": "exact"}))
    assert verify(" Paris \n", row("Paris")) == Verdict(True, "Paris")
    assert verify("paris", row("Paris")) == Verdict(False, "paris")
    assert verify("  ", row("Paris")) == Verdict(False, None)


def test_any_accepted_answer_is_right() -> None:
    number, exact = (resolve_verify(GSM8K.model_copy(update={"verify": name})) for name in ("number", "exact"))
    either = replace(row("Paris"), accepted=[" Lutetia "])
    assert [exact(text, either).correct for text in ("Paris", "Lutetia\n", "Lutetia.", "London")] == [
        True,
        True,
        False,
        False,
    ]
    either = replace(row("#### 12"), accepted=["a dozen: 12", "144", "none"])
    assert [number(text, either).correct for text in ("12", "so 144", "no idea", "13")] == [True, True, False, False]


def test_a_task_without_a_verifier_says_so() -> None:
    with pytest.raises(UserError, match=r"task\.verify: gsm8k has no verifier; set one of label, exact, number"):
        resolve_verify(GSM8K.model_copy(update={"verify": "none"}))


def test_a_large_number_is_shown_whole() -> None:
    assert resolve_verify(GSM8K)("it is 12,345,678.5", row("12345678.5")) == Verdict(True, "12345678.5")


def test_no_number_equals_no_number_in_vain() -> None:
    assert resolve_verify(GSM8K)("no idea", row("none")) == Verdict(False, None)
