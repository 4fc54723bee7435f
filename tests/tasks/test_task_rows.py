"""Rows of a task: ids that stay, instructions, labels and gold answers."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.config.schema import Task
from pipelines.dataset.defects import Place
from pipelines.dataset.row import Row
from pipelines.dataset.shapes import Draft
from pipelines.errors import UserError
from pipelines.tasks import Verdict
from pipelines.tasks.rows import Gold, Maker, check_splits

MakeTask = Callable[..., Task]
PLACE = Place("train.csv", 2)


def draft(prompt: str = "a", answer: str = "card", **more: Any) -> Draft:
    asked = [{"role": "user", "content": prompt}]
    return Draft(asked, [{"role": "assistant", "content": answer}], answer=answer, **more)


def test_a_draft_becomes_a_row(make_task: MakeTask) -> None:
    row = Maker(make_task()).row(draft(), PLACE)
    assert row.prompt == [{"role": "user", "content": "a"}]
    assert row.completion == [{"role": "assistant", "content": "card"}]
    assert (row.task, row.answer, row.label, row.source) == ("toy", "card", "card", "train.csv:2")
    assert len(row.id) == 16
    assert row.tools is None


def test_the_instruction_shows_every_label(make_task: MakeTask) -> None:
    row = Maker(make_task(instruction="One {of}:\n{labels}\n!", decline_label="none")).row(draft(), PLACE)
    assert row.prompt[0] == {"role": "system", "content": "One {of}:\ncard\ncash\nnone\n!"}
    assert [message["role"] for message in row.prompt] == ["system", "user"]


def test_a_system_message_of_the_rows_own_stays(make_task: MakeTask) -> None:
    own = draft()
    own.prompt.insert(0, {"role": "system", "content": "mine"})
    row = Maker(make_task(instruction="the task's")).row(own, PLACE)
    assert [message["content"] for message in row.prompt] == ["mine", "a"]


def test_an_instruction_cannot_show_labels_that_are_not_given(make_task: MakeTask) -> None:
    with pytest.raises(UserError, match=r"task\.instruction: {labels}"):
        Maker(make_task(instruction="{labels}", labels=None))


def test_ids_depend_on_what_a_row_says_not_on_its_line(make_task: MakeTask) -> None:
    maker, other = Maker(make_task()), Maker(make_task(name="other"))
    row = maker.row(draft(), PLACE)
    assert row.id == maker.row(draft(), Place("train.csv", 9)).id
    others = [
        maker.row(draft("b"), PLACE),
        maker.row(draft(answer="cash"), PLACE),
        maker.row(draft(), Place("other.csv", 2)),
        other.row(draft(), PLACE),
    ]
    assert len({row.id, *(each.id for each in others)}) == 5
    assert len({row.id, *(maker.numbered(row, n) for n in range(1, 4))}) == 4
    assert maker.numbered(row, 0) == row.id


def test_an_instruction_changes_no_id(make_task: MakeTask) -> None:
    plain, told = (Maker(make_task(instruction=text)) for text in (None, "Route it."))
    assert plain.row(draft(), PLACE).id == told.row(draft(), PLACE).id
    assert told.numbered(told.row(draft(), PLACE), 1) == plain.numbered(plain.row(draft(), PLACE), 1)


def test_prompts_that_differ_in_case_and_space_form_a_group(make_task: MakeTask) -> None:
    maker = Maker(make_task())
    groups = [maker.row(draft(text), PLACE).group for text in ("Where  IS it", " where is it ", "where is")]
    assert groups[0] == groups[1] != groups[2]
    keyed = [maker.row(draft(text, group="customer 7"), PLACE).group for text in ("a", "b")]
    assert keyed[0] == keyed[1] not in groups


def test_a_label_of_its_own_or_the_answer_or_none(make_task: MakeTask) -> None:
    assert Maker(make_task()).row(draft(label="kind"), PLACE).label == "kind"
    free = make_task(labels=None, verify="exact")
    assert Maker(free).row(draft(), PLACE).label == ""


def test_a_mistyped_answer(make_task: MakeTask) -> None:
    maker = Maker(make_task())
    row = maker.row(draft(answer="crad"), PLACE)
    assert maker.unknown_label(row) == "crad"
    assert maker.nearest_label("crad") == "; nearest valid name: card"
    assert Maker(make_task(labels=None)).unknown_label(row) is None
    also = maker.row(draft(accepted=["cash", "crad"]), PLACE)
    assert maker.unknown_label(also) == "crad"
    assert maker.unknown_label(maker.row(draft(accepted=["cash"]), PLACE)) is None


def test_a_constant_answer_has_to_be_a_label(make_task: MakeTask) -> None:
    with pytest.raises(UserError, match=r"task\.sources\.train\.constant_answer: no label 'crad'; .* card"):
        Maker(make_task(sources={"answer": None, "constant_answer": "crad"}))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_task_needs_rows_to_train_on_and_to_hold_out(make_task: MakeTask, split: str) -> None:
    task = make_task()
    left = {name: source for name, source in task.sources.items() if name != split}
    with pytest.raises(UserError, match=f"no source has split: {split}"):
        check_splits(task.model_copy(update={"sources": left}), carved=False)
    check_splits(task, carved=False)


def test_where_rows_are_carved_out_none_need_be_given(make_task: MakeTask) -> None:
    task = make_task()
    check_splits(task.model_copy(update={"sources": {"train": task.sources["train"]}}), carved=True)


def test_a_gold_answer_that_fails_its_verifier(make_task: MakeTask) -> None:
    def only_card(completion: str, row: Row) -> Verdict:
        return Verdict(correct=completion == row.answer == "card", parsed=completion)

    gold, maker = Gold(only_card, "my:only_card"), Maker(make_task())
    assert gold.problem(maker.row(draft(), PLACE)) is None
    said = gold.problem(maker.row(draft(answer="cash"), PLACE))
    assert said == "its own answer 'cash' doesn't pass verify my:only_card"


def test_a_row_without_completion_answers_with_its_answer(make_task: MakeTask) -> None:
    asked = Draft([{"role": "user", "content": "2 + 2"}], [], answer="4")
    row = Maker(make_task(labels=None, verify="exact")).row(asked, PLACE)
    assert Gold(lambda completion, row: Verdict(completion == "4", completion), "v").problem(row) is None


def test_a_verifier_has_to_return_a_verdict(make_task: MakeTask) -> None:
    def returns_a_boolean(completion: str, row: Row) -> Any:
        return completion == row.answer

    with pytest.raises(UserError, match="returned True, expected a Verdict"):
        Gold(returns_a_boolean, "my:verify").problem(Maker(make_task()).row(draft(), PLACE))


def test_a_developers_message_of_the_rows_own_stays(make_task: MakeTask) -> None:
    own = draft()
    own.prompt.insert(0, {"role": "developer", "content": "mine"})
    row = Maker(make_task(instruction="the task's")).row(own, PLACE)
    assert [message["content"] for message in row.prompt] == ["mine", "a"]


def test_a_completion_beside_its_answer_makes_another_row(make_task: MakeTask) -> None:
    maker, worked = Maker(make_task()), draft()
    worked.completion = [{"role": "assistant", "content": "It says card."}]
    assert maker.row(worked, PLACE).id != maker.row(draft(), PLACE).id


def test_a_context_is_put_into_the_prompt_and_into_the_id(make_task: MakeTask) -> None:
    maker = Maker(make_task(instruction="Route it."))
    row = maker.row(draft(context=["It is lost."], accepted=["cash"], kept={"lang": "en"}), PLACE)
    assert [m["content"] for m in row.prompt] == ["Route it.", "Context:\n[1] It is lost.\n\na"]
    assert (row.context, row.accepted, row.kept) == (["It is lost."], ["cash"], {"lang": "en"})
    other, bare = maker.row(draft(context=["It is found."]), PLACE), maker.row(draft(), PLACE)
    assert len({row.id, other.id, bare.id}) == 3
    assert row.group == other.group == bare.group  # one question
    assert maker.numbered(row, 0) == row.id


def test_the_last_message_answers(make_task: MakeTask) -> None:
    called = draft()
    called.completion = [
        {"role": "assistant", "content": "Let me see."},
        {"role": "tool", "content": "7"},
        *called.completion,
    ]
    gold = Gold(lambda completion, row: Verdict(completion == "card", completion), "v")
    assert gold.problem(Maker(make_task()).row(called, PLACE)) is None
