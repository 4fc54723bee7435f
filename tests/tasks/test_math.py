"""The math verifier on labelled answers, on all of GSM8K's own, and on what is made to break it."""

import json
from fractions import Fraction

import pytest

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.tasks import math, resolve_verify
from pipelines.tasks.final_answer import final_answer
from pipelines.tasks.math_limits import too_much
from pipelines.tasks.plain_number import Plain, read
from pipelines.tasks.verdict import Verdict
from tests.tasks.math_cases import SETS, Case, cases, row_of

TASK = compose(["task=gsm8k", "task.verify=math", "task.audit=math_strict"]).config.task
VERIFY = resolve_verify(TASK)
STRICT = resolve_verify(TASK, name=TASK.audit)


@pytest.mark.parametrize("case", [case for name in SETS for case in cases(name)], ids=lambda case: case.completion[:40])
def test_every_labelled_answer_is_judged_as_labelled(case: Case) -> None:
    assert VERIFY(case.completion, case.row).correct == case.right


def test_every_shipped_solution_and_its_bare_answer_pass_and_another_fails() -> None:
    lines = [line for name in ("train", "test") for line in (PROJECT / f"data/gsm8k/{name}.jsonl").open()]
    num_strict = 0
    for line in lines:
        solution = json.loads(line)["answer"]
        row, bare = row_of(solution), solution.rpartition("####")[2].strip()
        wrong = solution[: -len(bare)] + str(int(bare.replace(",", "")) + 1)
        assert [VERIFY(text, row).correct for text in (solution, bare, wrong)] == [True, True, False], solution
        assert [STRICT(text, row).correct for text in (bare, wrong)] == [False, False], solution
        num_strict += STRICT(solution, row).correct
    assert len(lines) == 8792
    assert num_strict == 8786  # six say "the answer is" before their last line


def test_the_audit_takes_nothing_that_math_does_not() -> None:
    found = [case for name in SETS for case in cases(name) if STRICT(case.completion, case.row).correct]
    assert found
    assert all(case.right for case in found)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("9 * 2 = 18\n#### 18", True),
        ("9 * 2 = 18\n\\boxed{18}", True),
        ("9 * 2 = 18\nThe answer is 18.", True),
        ("#### 18\n", True),
        ("18", False),
        ("#### 18 dollars", False),
        ("#### $18", False),
        ("\\boxed{18}\n#### 18", False),
        ("The answer is 18.\n#### 18", False),
        ("#### 18\nThat is all.", False),
        ("So \\boxed{18} it is", False),
        ("\\boxed{\\frac{36}{2}}", False),
    ],
)
def test_the_audit_wants_the_bare_answer_marked_once_in_the_last_line(completion: str, right: bool) -> None:
    assert STRICT(completion, row_of("#### 18")).correct == right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,800.50", Fraction(3601, 2)),
        ("-$1,800", Fraction(-1800)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("1.8e3", Fraction(1800)),
        ("18 km/h", Fraction(18)),
        ("0.1", Fraction(1, 10)),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction) -> None:
    assert read(text) == Plain(value)


@pytest.mark.parametrize(
    "text", ["18x", "18k", "18 thousand", "18^2", "18!", "1,80", "3-4", "18/0", "1e999", "18 or 17"]
)
def test_what_is_no_single_number_is_not_read(text: str) -> None:
    assert read(text) is None


def test_fractions_differ_that_floats_do_not_tell_apart() -> None:
    assert VERIFY("#### 0.1000000000000000001", row_of("0.1")).correct is False
    assert VERIFY("#### 9007199254740993", row_of("9007199254740992")).correct is False


def test_any_right_answer_will_do_and_a_percentage_is_both() -> None:
    row = row_of("18")
    row = type(row).from_dict(row.as_dict() | {"accepted": ["nineteen", r"\frac{1}{3}"]})
    assert [VERIFY(f"\\boxed{{{text}}}", row).correct for text in ("18", "1/3", "19")] == [True, True, False]
    assert [VERIFY("25%", row_of(gold)).correct for gold in ("25", "0.25", "2.5")] == [True, True, False]


def test_what_was_read_is_shown() -> None:
    assert VERIFY(r"\boxed{1,800}", row_of("18")) == Verdict(False, "1800")
    assert VERIFY(r"\boxed{x^2}", row_of("18")) == Verdict(False, "x^2")
    assert VERIFY("17 or 18, who knows", row_of("18")).parsed is None


def test_plain_answers_need_no_sympy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(gold: str, formula: str) -> bool:
        raise AssertionError(formula)

    monkeypatch.setattr(math, "_equal", unexpected)
    for text in ("#### 18", r"\boxed{\frac{36}{2}}", "17", "18 dollars", r"\boxed{1,800}", "x = 18", "25%"):
        VERIFY(text, row_of("18"))
    with pytest.raises(AssertionError):
        VERIFY(r"\boxed{\sqrt{324}}", row_of("18"))


@pytest.mark.parametrize(
    ("formula", "gold", "refused"),
    [
        ("9^{9^{9}}", "18", True),
        ("9^9^9", "18", True),
        ("((9^9)^9)^{999}", "18", True),
        ("2^{100}", "18", True),
        ("2^{100}", "2^{100}", False),
        ("x^{2^2}", "18", True),
        ("x^{10} y^{10}", "x", False),
        ("31!", "18", True),
        ("5!", "18", False),
        ("(3!)!", "18", True),
        ("n!", "n!", False),
        (r"\sum_{n=1}^{9} n", "45", True),
        (r"\sum_{n=1}^{9} n", r"\sum_{n=1}^{9} n", False),
        ("(" * 13 + "x" + ")" * 13, "x", True),
        ("(" * 12 + "x" + ")" * 12, "x", False),
        ("x+" * 250 + "x", "x", True),
    ],
)
def test_formulas_that_would_take_too_long_are_refused(formula: str, gold: str, refused: bool) -> None:
    assert (too_much(formula, gold) is not None) == refused


def test_an_answer_that_is_given_twice_is_one_and_two_are_none() -> None:
    same, other = final_answer(r"\boxed{\frac{1}{2}} so \boxed{0.5}"), final_answer(r"\boxed{1} so \boxed{2}")
    assert same is not None
    assert same.plain == Plain(Fraction(1, 2))
    assert other is None


def test_math_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tasks.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'task\.verify: math needs math_verify: pip install "tunesmith\[rl\]"'):
        resolve_verify(TASK)
    with pytest.raises(UserError, match=r"task\.audit: math_strict needs math_verify"):
        resolve_verify(TASK, name="math_strict")
