"""Each shape of record becomes the same kind of prompt and completion; none is guessed in silence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.schema import Source
from pipelines.dataset.shapes import Draft, Malformed, Reader

MakeSource = Callable[..., Source]
USER = {"role": "user", "content": "Where is my card?"}
ANSWER = {"role": "assistant", "content": "On its way."}
CALL = {"name": "track", "arguments": '{"card": "7"}'}
TOOL = {"name": "track", "parameters": {"type": "object", "properties": {"card": {"type": "string"}}}}


@pytest.fixture
def draft(make_source: MakeSource, tmp_path: Path) -> Callable[..., Draft]:
    def read(fields: dict[str, Any], **changes: Any) -> Draft:
        # Without prompt and answer of the shared fixture: the shape is found, or given by `changes`.
        return Reader(make_source(tmp_path / "a.jsonl", **({"prompt": None, "answer": None} | changes))).read(fields)

    return read


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [USER, ANSWER]},
        {"prompt": "Where is my card?", "completion": "On its way."},
        {"prompt": [USER], "completion": [ANSWER], "answer": "not the completion"},
        {"instruction": "Where is my card?", "input": "", "output": "On its way."},
        {"conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": ANSWER["content"]}]},
        {"prompt": "Where is my card?", "chosen": "On its way.", "rejected": "No idea."},
        {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "No idea."}]},
    ],
    ids=["messages", "texts", "sides", "alpaca", "sharegpt", "preference", "whole conversations"],
)
def test_one_question_in_every_shape(draft: Callable[..., Draft], fields: dict[str, Any]) -> None:
    found = draft(fields)
    assert (found.prompt, found.completion, found.answer) == ([USER], [ANSWER], "On its way.")
    assert (found.rejected is not None) == ("rejected" in fields)


def test_columns(draft: Callable[..., Draft]) -> None:
    fields = {"q": "Where is my card?", "a": " card_arrival ", "who": "c7", "when": 3, "sys": "Be brief.", "kind": "x"}
    names = {"prompt": "q", "answer": "a", "group": "who", "time": "when", "system": "sys", "label": "kind"}
    found = draft(fields, **names)
    assert found.prompt == [{"role": "system", "content": "Be brief."}, USER]
    assert found.completion == [{"role": "assistant", "content": "card_arrival"}]
    assert (found.answer, found.group, found.time, found.label) == ("card_arrival", "c7", "3", "x")


def test_a_completion_with_an_answer_of_its_own(draft: Callable[..., Draft]) -> None:
    found = draft({"q": "2 + 2", "worked": "Four: 4", "a": 4}, prompt="q", completion="worked", answer=None)
    assert (found.completion[0]["content"], found.answer) == ("Four: 4", "Four: 4")
    found = draft({"prompt": "2 + 2", "answer": 4})
    assert (found.completion, found.answer) == ([], "4")


def test_alpaca_joins_instruction_and_input(draft: Callable[..., Draft]) -> None:
    found = draft({"instruction": "Translate.", "input": "Hallo", "output": "Hello", "system": "You translate."})
    assert [m["content"] for m in found.prompt] == ["You translate.", "Translate.\n\nHallo"]


def test_a_conversation_ends_in_the_completion(draft: Callable[..., Draft]) -> None:
    found = draft({"messages": [USER, ANSWER, {"role": "user", "content": "When?"}, ANSWER]})
    assert (len(found.prompt), found.completion) == (3, [ANSWER])


def test_calls_of_tools_are_one_form(draft: Callable[..., Draft]) -> None:
    openai = {
        "tools": [{"type": "function", "function": TOOL}],
        "messages": [
            USER,
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "function": {"name": "track", "arguments": '{"card": "7"}'}}],
            },
            {"role": "tool", "content": "posted"},
            ANSWER,
        ],
    }
    sharegpt = {
        "tools": json.dumps([TOOL]),
        "conversations": [
            {"from": "human", "value": USER["content"]},
            {"from": "function_call", "value": '{"name": "track", "arguments": {"card": "7"}}'},
            {"from": "observation", "value": "posted"},
            {"from": "gpt", "value": ANSWER["content"]},
        ],
    }
    for fields in (openai, sharegpt):
        found = draft(fields)
        assert found.prompt == [USER]
        assert found.completion[0]["tool_calls"][0]["function"] == {"name": "track", "arguments": {"card": "7"}}
        assert [m["role"] for m in found.completion] == ["assistant", "tool", "assistant"]
        assert found.tools is not None


def test_a_shape_is_recognised_once_and_said(make_source: MakeSource, tmp_path: Path) -> None:
    reader = Reader(make_source(tmp_path / "a.jsonl", prompt=None, answer=None))
    reader.read({"messages": [USER, ANSWER]})
    assert (reader.shape, reader.recognised) == ("messages", True)
    with pytest.raises(Malformed, match="no field 'messages'"):
        reader.read({"prompt": "a", "completion": "b"})
    given = Reader(make_source(tmp_path / "a.jsonl", prompt="query", answer="label"))
    assert (given.shape, given.recognised) == ("columns", False)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "a"}, "not recognised by the fields 'text'; set records to one of messages"),
        ({"messages": [USER, ANSWER], "instruction": "a", "output": "b"}, "fits messages and alpaca by the fields"),
        ({"messages": [USER]}, "the last message is the user's, expected an answer of the assistant"),
        ({"messages": "hello"}, "'messages' is text, expected a list of messages"),
        ({"prompt": "", "completion": "b"}, "'prompt' is empty"),
        ({"prompt": "a", "completion": 3}, "'completion' is a number, expected text"),
        ({"prompt": "a", "answer": None}, "'answer' is null, expected text"),
        ({"prompt": "a", "answer": True}, "'answer' is a boolean, expected text"),
        ({"instruction": "a", "input": 3, "output": "b"}, "'input' is a number, expected text"),
        ({"conversations": [{"value": "a"}]}, "turn 1 has no role: no field 'from'"),
        ({"conversations": [{"from": "humn", "value": "a"}]}, "turn 1 is from 'humn'"),
        ({"conversations": []}, "'conversations' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are the same"),
        ({"messages": [USER, ANSWER], "tools": [{"name": "a", "parameters": {"type": "x"}}]}, "are no JSON schema"),
        ({"messages": [USER, ANSWER], "tools": "[{"}, "'tools' is text that is not JSON"),
    ],
)
def test_what_is_malformed(draft: Callable[..., Draft], fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed) as error:
        draft(fields)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"label": "a"}, "no field 'query'"),
        ({"query": 3, "label": "a"}, "'query' is a number, expected text"),
        ({"query": "\ud800", "label": "a"}, "'query' holds a lone surrogate U+D800"),
        ({"query": "a\0", "label": "a"}, "'query' holds a NUL character"),
        ({"query": "a", "label": "  "}, "'label' is empty"),
        ({"query": "a", "label": {}}, "'label' is an object, expected text"),
    ],
)
def test_columns_that_hold_no_text(make_source: MakeSource, tmp_path: Path, fields: Any, reason: str) -> None:
    with pytest.raises(Malformed, match=reason.replace("+", r"\+")):
        Reader(make_source(tmp_path / "a.csv", prompt="query", answer="label")).read(fields)


def test_every_fault_of_a_record_is_told(make_source: MakeSource, tmp_path: Path) -> None:
    with pytest.raises(Malformed) as error:
        Reader(make_source(tmp_path / "a.csv", prompt="query", answer="label")).read({"query": "", "label": 3})
    assert error.value.reasons == ("'query' is empty", "'label' is a number, expected text")


ROW = {
    "id": "1",
    "task": "t",
    "prompt": [USER],
    "completion": [ANSWER],
    "answer": "On its way.",
    "label": "card",
    "source": "a.jsonl:1",
    "group": "customer 7",
}


def test_what_another_prepare_wrote_is_recognised_and_keeps_label_and_group(draft: Callable[..., Draft]) -> None:
    found = draft(ROW)
    assert (found.prompt, found.completion) == ([USER], [ANSWER])
    assert (found.label, found.written, found.group) == ("card", "card", "customer 7")
    assert draft(ROW | {"completion": []}).completion == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "Where?"}, "'prompt' is text, expected a list of messages"),
        ({"completion": "Here."}, "'completion' is text, expected a list of messages"),
        ({"prompt": [{"role": "usr", "content": "a"}]}, "message 1 has the role 'usr'"),
        ({"label": 3}, "'label' is a number, expected text"),
    ],
)
def test_a_row_that_was_spoiled(draft: Callable[..., Draft], changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed) as error:
        draft(ROW | changes)
    assert reason in str(error.value)


def test_a_row_that_lost_a_field(make_source: MakeSource, tmp_path: Path) -> None:
    reader = Reader(make_source(tmp_path / "a.jsonl", prompt=None, answer=None))
    reader.read(ROW)
    with pytest.raises(Malformed, match="no field 'label'"):
        reader.read({name: value for name, value in ROW.items() if name != "label"})


def test_an_input_of_white_space_is_none(draft: Callable[..., Draft]) -> None:
    assert draft({"instruction": "Translate.", "input": " \n", "output": "Hello"}).prompt[0]["content"] == "Translate."


def test_an_answer_beside_a_conversation(draft: Callable[..., Draft]) -> None:
    fields = {"messages": [USER, ANSWER], "gold": 7, "kind": "card"}
    assert draft(fields, answer="gold").answer == "7"
    # The conversation's own answer goes before one that stands for the whole source.
    assert draft(fields, constant_answer="none").answer == "On its way."
    called = [USER, {"role": "assistant", "tool_calls": [{"function": CALL}]}]
    assert draft({"messages": called, "tools": [TOOL]}, constant_answer="none").answer == "none"
    # What `exclude` names is the label.
    assert draft(fields, label="kind").written == "card"


def test_sharegpts_system_comes_first(draft: Callable[..., Draft]) -> None:
    turns = [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": ANSWER["content"]}]
    found = draft({"conversations": turns, "system": "Be brief."})
    assert found.prompt == [{"role": "system", "content": "Be brief."}, USER]


def test_tools_may_have_a_column_of_another_name(draft: Callable[..., Draft]) -> None:
    found = draft({"messages": [USER, ANSWER], "functions": [TOOL]}, tools="functions")
    assert found.tools == [TOOL]


def test_calls_in_a_completion_are_the_same_form(draft: Callable[..., Draft]) -> None:
    called = {"role": "assistant", "tool_calls": [{"id": "1", "function": CALL}]}
    found = draft({"prompt": [USER], "completion": [called], "tools": [TOOL]})
    assert found.completion[0]["tool_calls"][0]["function"] == {"name": "track", "arguments": {"card": "7"}}


# --- samples of OpenAI's evals ------------------------------------------------------------------


def shot(role: str, text: str) -> dict[str, str]:
    return {"role": "system", "name": f"example_{role}", "content": text}


TOLD = {"role": "system", "content": "Answer with a capital."}


def test_a_sample_of_an_eval_is_recognised(make_source: MakeSource, tmp_path: Path) -> None:
    reader = Reader(make_source(tmp_path / "samples.jsonl", prompt=None, answer=None))
    found = reader.read({"input": [TOLD, {"role": "user", "content": "France?"}], "ideal": "Paris"})
    assert (reader.shape, reader.recognised) == ("openai_evals", True)
    assert found.prompt == [TOLD, {"role": "user", "content": "France?"}]
    assert (found.completion, found.answer, found.accepted) == (
        [{"role": "assistant", "content": "Paris"}],
        "Paris",
        None,
    )


def test_the_further_ideals_of_a_sample_are_accepted(draft: Callable[..., Draft]) -> None:
    found = draft({"input": "What is 2 + 2?", "ideal": [" 4", "four", "4", "Four", "four"], "metadata": {"id": 7}})
    assert found.prompt == [{"role": "user", "content": "What is 2 + 2?"}]
    assert (found.answer, found.accepted, found.completion[0]["content"]) == ("4", ["four", "Four"], "4")
    assert draft({"input": "2 + 2?", "ideal": 4}).answer == "4"
    assert draft({"input": "2 + 2?", "ideal": ["4", "4"]}).accepted is None


def test_the_shots_of_a_sample_are_turns(draft: Callable[..., Draft]) -> None:
    named = {"role": "user", "name": "ada", "content": "Spain?"}
    found = draft({"input": [TOLD, shot("user", "France?"), shot("assistant", "Paris"), named], "ideal": "Madrid"})
    assert found.prompt == [
        TOLD,
        {"role": "user", "content": "France?"},
        {"role": "assistant", "content": "Paris"},
        named,
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"input": [TOLD], "ideal": "Paris"}, "message 2 is the assistant's after system, expected user"),
        ({"input": [TOLD, shot("user", "a"), USER], "ideal": "b"}, "message 3 is the user's after user, expected "),
        ({"input": "", "ideal": "Paris"}, "'input' is empty"),
        ({"input": [], "ideal": "Paris"}, "'input' is empty, expected a list of messages"),
        ({"input": ["France?"], "ideal": "Paris"}, "message 1 is text, expected an object with role and content"),
        ({"input": "France?", "ideal": []}, "'ideal' is a list, expected text"),
        ({"input": "France?", "ideal": ["Paris", None]}, "'ideal 2' is null, expected text"),
        ({"input": "France?", "ideal": ["Paris", " "]}, "'ideal 2' is empty"),
        ({"input": "a", "ideal": "b", "messages": [USER, ANSWER]}, "fits messages and openai_evals by the fields"),
    ],
)
def test_what_is_no_sample_of_an_eval(draft: Callable[..., Draft], fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed) as error:
        draft(fields)
    assert reason in str(error.value)


# --- context and columns that are kept ----------------------------------------------------------


def test_a_record_of_any_shape_has_a_context_and_columns_to_keep(draft: Callable[..., Draft]) -> None:
    beside = {"docs": ["One.", {"text": "Two."}], "lang": " en ", "turns": 3, "vip": True, "plan": None, "city": " "}
    beside["tests"] = ["assert f()"]
    columns = {"context": "docs", "keep": ["lang", "turns", "vip", "plan", "city", "tests"]}
    kept = {"lang": "en", "turns": "3", "vip": "true", "plan": "", "city": "", "tests": '["assert f()"]'}
    for fields in ({"messages": [USER, ANSWER]}, {"prompt": "a", "completion": "b"}, {"input": "a", "ideal": "b"}):
        found = draft(fields | beside, **columns)
        assert (found.context, found.kept) == (["One.", "Two."], kept)
    found = draft({"q": "a", "a": "b", **beside}, prompt="q", answer="a", **columns)
    assert (found.context, found.kept) == (["One.", "Two."], kept)
    plain = draft({"messages": [USER, ANSWER], **beside})
    assert (plain.context, plain.kept, plain.accepted) == (None, None, None)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"context": "dosc"}, "no field 'dosc'; nearest valid name: docs"),
        ({"context": "number"}, "'number' is a number, expected text"),
        ({"keep": ["lnag"]}, "no field 'lnag'; nearest valid name: lang"),
        ({"keep": ["meta"]}, "'meta' is an object, expected text, a number, true, false or a list"),
        ({"keep": ["nul"]}, "'nul' holds a NUL character"),
    ],
)
def test_a_context_or_a_kept_column_that_cant_be_read(
    draft: Callable[..., Draft], columns: dict[str, Any], reason: str
) -> None:
    fields = {"messages": [USER, ANSWER], "docs": ["One."], "lang": "en", "number": 3, "nul": "a\0", "meta": {}}
    with pytest.raises(Malformed) as error:
        draft(fields, **columns)
    assert reason in str(error.value)


def test_what_another_prepare_wrote_keeps_all_it_has(draft: Callable[..., Draft]) -> None:
    more = {"accepted": ["Under way."], "context": ["It was sent."], "kept": {"lang": "en"}}
    found = draft(ROW | more)
    assert (found.accepted, found.context, found.kept) == tuple(more.values())
    # A column that it kept may be asked for again, and fields of the row beside it.
    assert draft(ROW | more, keep=["lang", "task"]).kept == {"lang": "en", "task": "t"}
    for name, wrong in (("accepted", "Under way."), ("context", []), ("kept", {"lang": 3})):
        with pytest.raises(Malformed, match=f"{name} is no"):
            draft(ROW | {name: wrong})


OTHER = {"role": "user", "content": "When?"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"chosen": [USER, ANSWER], "rejected": [OTHER, ANSWER]}, "'chosen' and 'rejected' share no prompt"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER, OTHER, ANSWER]}, "'chosen' holds nothing of its own"),
        (
            {"chosen": [USER, ANSWER, OTHER, ANSWER], "rejected": [USER, ANSWER]},
            "'chosen' begins with a message of the user",
        ),
        ({"prompt": [USER, ANSWER], "completion": [OTHER]}, "'completion' begins with a message of the user"),
        ({"prompt": "a", "completion": [ANSWER, USER]}, "'completion' ends with a message of the user"),
        ({"prompt": "a", "chosen": "b", "rejected": [ANSWER, ANSWER]}, "message 3 is the assistant's after assistant"),
    ],
)
def test_a_completion_is_the_assistants(draft: Callable[..., Draft], fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed) as error:
        draft(fields)
    assert reason in str(error.value)
