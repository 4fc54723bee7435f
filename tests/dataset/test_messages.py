"""Conversations that can be trained on pass; each fault is told with the message that has it."""

from typing import Any

import pytest

from pipelines.dataset.messages import problems, tools_problem

LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "An account's balance.",
        "parameters": {
            "type": "object",
            "properties": {"account": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["account"],
            "additionalProperties": False,
        },
    },
}


def user(text: Any = "hello") -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(name: str = "look_up", arguments: Any = None) -> dict[str, Any]:
    given = {"account": "A1"} if arguments is None else arguments
    return assistant(None, tool_calls=[{"type": "function", "function": {"name": name, "arguments": given}}])


RESULT = {"role": "tool", "content": '{"balance": 3}'}


@pytest.mark.parametrize(
    "messages",
    [
        [user(), assistant()],
        [{"role": "system", "content": "s"}, user(), assistant()],
        [user(), assistant(), user(), assistant()],
        [user(), call(), RESULT, RESULT, assistant()],
        [user(), call(arguments='{"account": "A1", "days": 2}'), RESULT, assistant()],
        [user()],
    ],
)
def test_sound_conversations(messages: list[dict[str, Any]]) -> None:
    assert problems(messages, [LOOK_UP]) == []


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", "'messages' is text, expected a list of messages"),
        ([], "'messages' is empty"),
        (["hello"], "message 1 is text, expected an object with role and content"),
        ([{"content": "hello"}], "message 1 has no role"),
        ([{"role": "usr", "content": "hello"}], "message 1 has the role 'usr', expected system"),
        ([{"role": 3, "content": "hello"}], "message 1 has the role 3, expected system"),
        ([user(), {"role": "assistant"}], "message 2 (assistant) has no content"),
        ([user(None), assistant()], "the content of message 1 (user) is null, expected text"),
        ([user([{"type": "image"}]), assistant()], "the content of message 1 (user) is a list, expected text"),
        ([user(), assistant(" \n")], "the content of message 2 (assistant) is empty"),
        ([user("a\0b"), assistant()], "the content of message 1 (user) holds a NUL character"),
        ([user("a\ud83d"), assistant()], "the content of message 1 (user) holds a lone surrogate U+D83D"),
        ([user(), user()], "message 2 is the user's after user, expected assistant"),
        ([assistant(), user()], "message 1 is the assistant's at the beginning, expected system"),
        ([user(), assistant(), assistant()], "message 3 is the assistant's after assistant, expected user"),
        ([user(), {"role": "system", "content": "s"}], "message 2 is the system's after user"),
        ([user(), call(), assistant()], "message 3 is the assistant's after a call of tools, expected tool"),
        ([user(), RESULT], "message 2 is the tool's after user, expected assistant"),
        ([user() | {"tool_calls": [{}]}], "message 1 (user) calls tools; only the assistant may"),
        ([user(), call() | {"content": 3}], "the content of message 2 (assistant) is a number, expected text"),
        ([user(), call(), RESULT, user()], "message 4 is the user's after tool, expected tool or assistant"),
        ([user(), call(arguments={"account": 1, "days": 0})], "its schema: account: 1 is not of type 'string'"),
        ([user(), assistant(None, tool_calls=[])], "message 2: tool_calls is empty"),
        ([user(), assistant(None, tool_calls=[{}])], "message 2: a tool call has no function name"),
        ([user(), call("look_pu")], "message 2: calls 'look_pu', which is not among its tools; nearest valid name"),
        ([user(), call(arguments="{")], "message 2: the arguments of 'look_up' are not JSON"),
        ([user(), call(arguments=[1])], "message 2: the arguments of 'look_up' are a list, expected an object"),
        ([user(), call(arguments={"days": 2})], "don't satisfy its schema: 'account' is a required property"),
        ([user(), call(arguments={"account": "A", "days": 0})], "its schema: days: 0 is less than the minimum of 1"),
    ],
)
def test_a_fault_is_told(messages: Any, reason: str) -> None:
    (found,) = problems(messages, [LOOK_UP])[:1]
    assert reason in found


def test_every_message_with_a_fault_is_told() -> None:
    assert len(problems([user(""), assistant(3), {"role": "x"}], None)) == 3


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ({}, "'tools' is an object, expected a list of tools"),
        ([{"type": "function"}], "tool 1 has no name"),
        ([{"name": "a", "parameters": {"type": "objct"}}], "the parameters of tool 'a' are no JSON schema"),
    ],
)
def test_tools_that_are_none(tools: Any, reason: str) -> None:
    assert reason in str(tools_problem(tools))


def test_sound_tools() -> None:
    assert tools_problem([LOOK_UP, {"name": "bare", "parameters": {}}]) is None
