"""Rows of a task: ids that stay, instructions, selection, and defects with their line."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.schema import Task
from pipelines.dataset.defects import Defects
from pipelines.dataset.row import Row
from pipelines.errors import DataError, UserError
from pipelines.tasks import Verdict
from pipelines.tasks.rows import build_rows, check_gold

MakeTask = Callable[..., Task]
BODY = "".join(f"question {n},{'card' if n % 3 else 'cash'}\n" for n in range(60))


def rows_of(task: Task, split: str = "train", seed: int = 1) -> list[Row]:
    defects = Defects(20)
    built = build_rows(task, seed, defects)
    defects.raise_if_any()
    return built[split].rows


def test_a_record_becomes_a_row(make_task: MakeTask, tmp_path: Path) -> None:
    row = rows_of(make_task())[0]
    assert row.prompt == [{"role": "user", "content": "a"}]
    assert row.completion == [{"role": "assistant", "content": "card"}]
    assert (row.task, row.answer, row.label, row.source) == ("toy", "card", "card", f"{tmp_path}/train.csv:2")
    assert len(row.id) == 16
    assert row.tools is None


def test_the_instruction_shows_every_label(make_task: MakeTask) -> None:
    row = rows_of(make_task(instruction="One {of}:\n{labels}\n!", decline_label="none"))[0]
    assert row.prompt[0] == {"role": "system", "content": "One {of}:\ncard\ncash\nnone\n!"}
    assert [message["role"] for message in row.prompt] == ["system", "user"]


def test_an_instruction_cannot_show_labels_that_are_not_given(make_task: MakeTask) -> None:
    with pytest.raises(UserError, match=r"task\.instruction: {labels}"):
        rows_of(make_task(instruction="{labels}", labels=None))


def test_ids_do_not_depend_on_the_order_of_lines(make_task: MakeTask) -> None:
    lines = [*BODY.splitlines(keepends=True), "question 1,card\n", "question 1,card\n"]
    before = rows_of(make_task({"train": "".join(lines)}))
    after = rows_of(make_task({"train": "".join(random.Random(0).sample(lines, len(lines)))}))
    assert {row.id: row.prompt for row in before} == {row.id: row.prompt for row in after}
    assert len({row.id for row in before}) == 62


def test_ids_do_not_depend_on_the_order_of_sources(make_task: MakeTask) -> None:
    task = make_task()
    sources = task.sources | {"again": task.sources["train"]}
    turned = dict(reversed(sources.items()))
    first, second = (
        build_rows(task.model_copy(update={"sources": given}), 1, Defects(1)) for given in (sources, turned)
    )
    assert first == second
    assert {row.id for row in first["train"].rows}.isdisjoint(row.id for row in first["again"].rows)


def test_ids_tell_tasks_prompts_answers_and_files_apart(make_task: MakeTask) -> None:
    files = {"train": "a,card\na,cash\nb,card\n", "heldout": "a,card\n"}
    task, other = make_task(files), make_task(files, name="other")
    ids = [row.id for each in (task, other) for split in ("train", "heldout") for row in rows_of(each, split)]
    assert len(set(ids)) == 8


def test_prompts_that_differ_in_case_and_space_form_a_group(make_task: MakeTask) -> None:
    rows = rows_of(make_task({"train": "Where  IS it,card\n where is it ,card\nwhere is,card\n"}))
    assert rows[0].group == rows[1].group != rows[2].group


def test_limit_keeps_a_seeded_sample(make_task: MakeTask) -> None:
    task = make_task({"train": BODY}, {"limit": 10})
    kept = rows_of(task)
    assert len(kept) == 10
    assert kept == rows_of(task)
    assert kept != rows_of(task, seed=2)
    assert len({row.label for row in kept}) == 2


def test_excluded_labels_are_left_out(make_task: MakeTask) -> None:
    task = make_task({"train": BODY, "heldout": BODY}, {"exclude": ["cash"]})
    built = build_rows(task, 1, Defects(20))["train"]
    assert (built.num_read, {row.label for row in built.rows}, len(built.rows)) == (60, {"card"}, 40)


def test_excluding_a_label_that_no_record_has_is_a_defect(make_task: MakeTask) -> None:
    with pytest.raises(DataError, match="exclude: no record has the label 'crad'; nearest valid name: card"):
        rows_of(make_task(sources={"exclude": ["crad"]}))


def test_a_mistyped_answer_is_a_defect_with_its_line(make_task: MakeTask, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        rows_of(make_task({"train": "a,card\nb,crad\nonly one\n", "heldout": "c,Cash\n"}))
    assert str(error.value).splitlines() == [
        f"{tmp_path}/heldout.csv:2: no label 'Cash'; nearest valid name: cash",
        f"{tmp_path}/train.csv:4: 1 field, the header has 2",
        f"{tmp_path}/train.csv:3: no label 'crad'; nearest valid name: card",
        "3 defects in the source files",
    ]


def test_without_labels_any_answer_is_taken(make_task: MakeTask) -> None:
    assert [row.answer for row in rows_of(make_task({"train": "a,x\nb,y\n"}, labels=None))] == ["x", "y"]


def test_a_constant_answer_has_to_be_a_label(make_task: MakeTask) -> None:
    with pytest.raises(UserError, match=r"task\.sources\.train\.constant_answer: no label 'crad'; .* card"):
        rows_of(make_task(sources={"answer": None, "constant_answer": "crad"}))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_task_needs_rows_to_train_on_and_to_hold_out(make_task: MakeTask, split: str) -> None:
    task = make_task()
    left = {name: source for name, source in task.sources.items() if name != split}
    with pytest.raises(UserError, match=f"no source has split: {split}"):
        rows_of(task.model_copy(update={"sources": left}))


def test_a_gold_answer_that_fails_its_verifier_is_a_defect(make_task: MakeTask, tmp_path: Path) -> None:
    def only_card(completion: str, row: Row) -> Verdict:
        return Verdict(correct=completion == row.answer == "card", parsed=completion)

    defects = Defects(20)
    check_gold(rows_of(make_task()), only_card, "my:only_card", defects)
    with pytest.raises(DataError) as error:
        defects.raise_if_any()
    assert str(error.value).splitlines() == [
        f"{tmp_path}/train.csv:3: its own answer 'cash' doesn't pass verify my:only_card",
        "1 defect in the source files",
    ]


def test_a_verifier_has_to_return_a_verdict(make_task: MakeTask) -> None:
    def returns_a_boolean(completion: str, row: Row) -> Any:
        return completion == row.answer

    with pytest.raises(UserError, match="returned True, expected a Verdict"):
        check_gold(rows_of(make_task()), returns_a_boolean, "my:verify", Defects(20))
