"""The label verifier says yes to each shipped gold answer and no to anything else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.schema import Task
from pipelines.dataset.defects import Defects
from pipelines.dataset.read import read_source
from pipelines.dataset.row import Row
from pipelines.dataset.shapes import Reader
from pipelines.errors import DataError, UserError
from pipelines.tasks import VERIFIERS, Verdict, resolve_verify
from pipelines.tasks.label import known_labels
from pipelines.tasks.rows import Maker

MakeTask = Callable[..., Task]
PROMPT = [{"role": "user", "content": "a"}]
COMPLETION = [{"role": "assistant", "content": "card"}]
ROW = Row("1", "toy", PROMPT, COMPLETION, "card", "card", "toy.csv:2", "a")


@pytest.fixture(scope="session")
def shipped_rows(support_routing: Task) -> list[Row]:
    """Every row of the task's files whose label isn't left out."""
    defects, maker = Defects(20), Maker(support_routing)
    rows = []
    for name, source in support_routing.sources.items():
        reader = Reader(source)
        for record in read_source(source, defects, 10_000, name):
            draft = reader.read(record.fields)
            if draft.written not in source.exclude:
                rows.append(maker.row(draft, record.place))
    defects.raise_if_any()
    return rows


def test_every_shipped_gold_answer_passes(support_routing: Task, shipped_rows: list[Row]) -> None:
    verify = resolve_verify(support_routing)
    for row in shipped_rows:
        assert verify(row.completion[0]["content"], row) == Verdict(correct=True, parsed=row.answer)
    assert len(shipped_rows) == 10_003 + 3_080 + 11_900 + 100 + 100 + 1_000


def test_every_other_label_fails_every_shipped_row(support_routing: Task, shipped_rows: list[Row]) -> None:
    verify = resolve_verify(support_routing)
    labels = known_labels(support_routing) or []
    for number, row in enumerate(shipped_rows):
        other = [label for label in labels if label != row.answer][number % (len(labels) - 1)]
        assert verify(other, row) == Verdict(correct=False, parsed=other)
        for wrong in (f"{row.answer}\n{other}", f"{row.answer}.", row.prompt[-1]["content"], ""):
            assert verify(wrong, row) == Verdict(correct=False, parsed=None)


def test_any_accepted_label_is_right(make_task: MakeTask) -> None:
    verify = resolve_verify(make_task(decline_label="none"))
    row = Row.from_dict(ROW.as_dict() | {"accepted": ["none"]})
    assert [verify(text, row) for text in ("card", "none ", "cash")] == [
        Verdict(correct=True, parsed="card"),
        Verdict(correct=True, parsed="none"),
        Verdict(correct=False, parsed="cash"),
    ]


@pytest.mark.parametrize("completion", ["card", " card\n", "\tcard\r\n\n"])
def test_white_space_around_the_label_does_not_count(make_task: MakeTask, completion: str) -> None:
    assert resolve_verify(make_task())(completion, ROW) == Verdict(correct=True, parsed="card")


@pytest.mark.parametrize("completion", ["Card", "card\ncard", "card cash", "label: card", "'card'", "car d"])
def test_anything_else_is_wrong_and_no_label(make_task: MakeTask, completion: str) -> None:
    assert resolve_verify(make_task())(completion, ROW) == Verdict(correct=False, parsed=None)


def test_declining_is_a_label(make_task: MakeTask) -> None:
    verify = resolve_verify(make_task(decline_label="none"))
    assert verify("none", ROW) == Verdict(correct=False, parsed="none")
    assert resolve_verify(make_task())("none", ROW).parsed is None


def test_without_a_labels_file_any_text_is_an_answer(make_task: MakeTask) -> None:
    verify = resolve_verify(make_task(labels=None))
    assert verify("loan", ROW) == Verdict(correct=False, parsed="loan")
    assert verify("card", ROW) == Verdict(correct=True, parsed="card")
    assert verify(" \n", ROW) == Verdict(correct=False, parsed=None)


def test_a_decline_label_in_the_file_is_one_label(make_task: MakeTask) -> None:
    assert known_labels(make_task(decline_label="cash")) == ["card", "cash"]
    assert known_labels(make_task(decline_label="none")) == ["card", "cash", "none"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ('{"card": 1}', "expected a list of labels"),
        ("[]", "expected a list of labels"),
        ('["card", 3]', "3 is no label"),
        ('["card", " cash"]', "' cash' is no label"),
        ('["two\\nlines"]', "is no label"),
        ('["card", "cash", "card"]', "'card' occurs 2 times"),
    ],
)
def test_a_bad_labels_file_is_named(make_task: MakeTask, tmp_path: Path, content: str, reason: str) -> None:
    task = make_task()
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(DataError, match=reason) as error:
        resolve_verify(task)
    assert str(error.value).startswith(f"task.labels: {tmp_path}/labels.json: ")


@pytest.mark.parametrize(("path", "reason"), [("no.json", "no such file"), ("", "can't be read: Is a directory")])
def test_a_labels_file_that_cannot_be_opened(make_task: MakeTask, tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        resolve_verify(make_task(labels=f"{tmp_path}/{path}"))


OWN = """
import json
from pipelines.tasks import Verdict

LIMIT = 3

def same_json(completion, row):
    return Verdict(correct=json.loads(completion) == json.loads(row.answer), parsed=completion)
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_checks"
    package.mkdir()
    (package / "answers.py").write_text(OWN)
    (package / "broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_module")
def test_a_verifier_of_ones_own_is_named_by_module_and_function(make_task: MakeTask) -> None:
    verify = resolve_verify(make_task(verify="own_checks.answers:same_json"))
    row = Row.from_dict(ROW.as_dict() | {"answer": json.dumps({"a": 1, "b": 2})})
    assert verify('{"b": 2, "a": 1}', row).correct
    assert not verify('{"b": 2}', row).correct


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lable", "got 'lable'; nearest valid name: label"),
        ("own_checks.answers", "expected a verifier's name or package.module:function"),
        ("own_checks.answers:same_jsno", "has no function 'same_jsno'; nearest valid name: same_json"),
        ("own_checks.answers:LIMIT", "has no function 'LIMIT'"),
        ("own_checks.answer:same_json", "no module 'own_checks.answer'"),
        ("own_check.answers:same_json", "no module 'own_check'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(make_task: MakeTask, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        resolve_verify(make_task(verify=name))


@pytest.mark.usefixtures("own_module")
def test_a_broken_module_shows_its_own_error(make_task: MakeTask) -> None:
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        resolve_verify(make_task(verify="own_checks.broken:verify"))


def test_names_in_yaml_are_the_keys_of_verifiers(support_routing: Task) -> None:
    assert support_routing.verify in VERIFIERS


@pytest.mark.parametrize("name", ["label", "exact", "number", "math", "math_strict"])
def test_every_named_verifier_judges(make_task: MakeTask, name: str) -> None:
    row = Row.from_dict(ROW.as_dict() | {"answer": "18"})
    verify = resolve_verify(make_task(verify=name, labels=None))
    marked = "#### 18" if name in ("number", "math", "math_strict") else "18"
    assert verify(marked, row).correct
    assert not verify("17", row).correct
