"""Programs that answers hold, run against their tests in the sandbox; what is no program needs none."""

import json
from dataclasses import replace

import pytest

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Row
from pipelines.errors import DataError
from pipelines.tasks import Verify, resolve_verify
from pipelines.tasks.code import code_in, hidden, verifier

CONFIG = compose(["task=mbpp"]).config
TESTS = ["assert double(2) == 4", "assert double(0) == 0", "assert double(-3) == -6"]
RIGHT = "def double(n):\n    return 2 * n"


def row(tests: list[str] = TESTS, **kept: str) -> Row:
    held = {"tests": json.dumps(tests), "setup": "", "challenge_tests": ""} | kept
    return Row("1", "toy", [{"role": "user", "content": "double"}], [], RIGHT, "", "toy.jsonl:1", "a", kept=held)


@pytest.fixture(scope="module")
def verify() -> Verify:
    return verifier(CONFIG.task, CONFIG.verifier.sandbox)


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("x = 1\n", "x = 1\n"),
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```", "x = 2"),
        ("```py\nx = 1\n```\nIts output:\n```\n1\n```", "x = 1"),
        ("```text\nhi\n```\n```\nx = 3\n```", "x = 3"),
        ("```python\nx = 1", "x = 1"),
        ("  ```Python \n  x = 1\n  ```", "  x = 1"),
        ('```python\ns = """\n```python\n"""\n```', 's = """\n```python\n"""'),
        ("", ""),
    ],
)
def test_the_program_of_an_answer(completion: str, program: str) -> None:
    assert code_in(completion) == program


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "I don't know.",
        "```python\n```",
        "def double(n):\n  return 2 *",
        "x = '\0'",
        "(" * 20_000,
        "-" * 40_000 + "1",
        "x = 1\n" * 20_000,
        "```python\ndef f(:\n```",
    ],
)
def test_what_is_no_program_is_wrong_and_never_run(completion: str) -> None:
    """Without a sandbox at hand: the settings hold a server that isn't there, and asking it would fail."""
    nowhere = CONFIG.verifier.sandbox.model_copy(update={"backend": "piston", "url": "http://127.0.0.1:9/"})
    verdict = verifier(CONFIG.task, nowhere)(completion, row())
    assert (verdict.correct, verdict.parsed) == (False, None)


def test_a_program_is_right_if_all_tests_hold(verify: Verify) -> None:
    for completion, correct in (
        (RIGHT, True),
        (f"Here it is.\n```python\n{RIGHT}\n```", True),
        (f"```python\n{RIGHT}\n```\nor\n```python\ndef double(n):\n    return n\n```", False),
        ("def double(n):\n    return {2: 4, 0: 0}[n]", False),  # the tests that a prompt shows, written down
        ("def double(n):\n    raise SystemExit(0)", False),
        ("def triple(n):\n    return 3 * n", False),
        ("import sys\nsys.exit(0)", False),
    ):
        verdict = verify(completion, row())
        assert verdict.correct == correct, completion
        assert verdict.parsed == code_in(completion)


def test_what_tests_need_comes_from_the_row(verify: Verify) -> None:
    given = row(["assert double(seven) == 14"], setup="seven = 7")
    assert verify(RIGHT, given).correct
    assert not verify(RIGHT, replace(given, kept={**(given.kept or {}), "setup": ""})).correct


def test_the_audit_asks_what_no_prompt_shows() -> None:
    audit = hidden(CONFIG.task, CONFIG.verifier.sandbox)
    small = "def double(n):\n    return 2 * n if n < 100 else 0"
    further = row(challenge_tests=json.dumps(["assert double(1000) == 2000"]))
    assert [audit(RIGHT, further).correct, audit(small, further).correct, audit(small, row()).correct] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (None, r"row 1 \(toy.jsonl:1\) has no tests; its source needs keep: \[tests, setup\]"),
        ({"tests": "[]"}, "has no tests"),
        ({"tests": "assert True"}, "'tests' is no JSON list of asserts: 'assert True'"),
        ({"tests": "[1]"}, "'tests' is no JSON list of asserts"),
    ],
)
def test_a_row_without_tests_judges_nothing(verify: Verify, kept: dict[str, str] | None, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        verify(RIGHT, replace(row(), kept=kept))


def test_mbpp_comes_in_upstreams_parts_and_shows_all_tests_but_the_last() -> None:
    numbers = {}
    for part in ("train", "validation", "test"):
        lines = (PROJECT / f"data/mbpp/{part}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        numbers[part] = [record["task_id"] for record in records]
        for record in records:
            tests = json.loads(record["tests"])
            assert len(tests) == 3
            shown = record["prompt"].partition("\n\n")[2]
            assert shown == "\n".join(tests[:-1])
            assert "\r" not in record["code"]
    assert numbers == {
        "train": list(range(601, 975)),
        "validation": list(range(511, 601)),
        "test": list(range(11, 511)),
    }


def test_problems_of_mbpp_take_their_own_solution_and_not_the_next_ones() -> None:
    """A few, with and without challenge tests, and one whose tests need a set-up."""
    audit = resolve_verify(CONFIG.task, CONFIG.verifier.sandbox, "code_hidden")
    train, test = (
        (PROJECT / f"data/mbpp/{part}.jsonl").read_text(encoding="utf-8").splitlines() for part in ("train", "test")
    )
    lines = [*test[:5], *train[:4], *(line for line in test if "Node(1)" in line)]
    records = [json.loads(line) for line in lines]
    assert any(record["setup"] for record in records)
    for record, other in zip(records, records[1:] + records[:1], strict=True):
        kept = {name: record[name] for name in ("tests", "setup", "challenge_tests")}
        judged = replace(row(), kept=kept)
        assert audit(f"```python\n{record['code']}\n```", judged).correct, record["task_id"]
        assert not audit(other["code"], judged).correct, record["task_id"]
