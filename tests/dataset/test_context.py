"""Passages: what a column may hold, and how a prompt comes to hold them."""

from typing import Any

import pytest

from pipelines.dataset.context import block, parted, passages, with_context

SYSTEM = {"role": "system", "content": "Answer from the passages."}
FIRST, SECOND = "Cards arrive in 5 days.", "Abroad it takes 9 days."


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (f" {FIRST}\n", [FIRST]),
        ([FIRST, SECOND], [FIRST, SECOND]),
        ([{"text": FIRST, "id": 3}, {"content": SECOND}, FIRST], [FIRST, SECOND, FIRST]),
        ({"text": FIRST, "content": SECOND}, [FIRST]),
        # A text is one passage, whatever it looks like.
        ('["a", "b"]', ['["a", "b"]']),
        (None, None),
        ([], None),
        (" \n", None),
    ],
)
def test_what_a_column_may_hold(value: Any, found: list[str] | None) -> None:
    assert passages("docs", value) == found


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "'docs' is a number, expected text, or a list of texts or of objects with text or content"),
        ([FIRST, 3], "passage 2 of 'docs' is a number, expected text"),
        ([{"title": "a"}], "passage 1 of 'docs' is an object without text or content, expected text"),
        ([{"text": ["a"]}], "passage 1 of 'docs' is a list, expected text"),
        ([FIRST, " "], "passage 2 of 'docs' is empty"),
        ([None], "passage 1 of 'docs' is null, expected text"),
        ("a\0b", "'docs' holds a NUL character"),
    ],
)
def test_what_holds_no_passages(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match="docs") as error:
        passages("docs", value)
    assert str(error.value).startswith(reason)


def test_the_passages_go_before_the_last_users_text() -> None:
    prompt = [SYSTEM, user("Hello"), {"role": "assistant", "content": "Hi."}, user("How long?")]
    shown = with_context(prompt, [FIRST, SECOND])
    assert shown[:3] == prompt[:3]
    assert shown[3] == user("Context:\n[1] Cards arrive in 5 days.\n[2] Abroad it takes 9 days.\n\nHow long?")
    assert prompt[3] == user("How long?")  # the caller's prompt is left alone
    assert with_context(shown, [FIRST, SECOND]) == shown


@pytest.mark.parametrize(
    "prompt",
    [
        [user(f"How long?\n\n{FIRST}\n{SECOND}")],
        [{"role": "system", "content": f"Know: {FIRST}"}, user(f"{SECOND} How long?")],
        [user(f"Cards  arrive\nin 5 days.\n{SECOND}\nHow long?")],
    ],
    ids=["in the question", "in two messages", "other white space"],
)
def test_a_prompt_that_holds_all_passages_stays(prompt: list[dict[str, Any]]) -> None:
    assert with_context(prompt, [FIRST, SECOND]) == prompt


def test_a_prompt_that_holds_some_gets_all() -> None:
    (shown,) = with_context([user(f"{FIRST} How long?")], [FIRST, SECOND])
    assert shown["content"] == f"{block([FIRST, SECOND])}{FIRST} How long?"


def test_without_passages_a_prompt_stays() -> None:
    assert with_context([user("How long?")], None) == [user("How long?")]


def test_the_block_and_the_question_come_apart() -> None:
    assert parted(f"{block([FIRST])}How long?", [FIRST]) == (f"Context:\n[1] {FIRST}\n\n", "How long?")
    assert parted(f"{block([FIRST])}How long?", [SECOND]) == ("", f"{block([FIRST])}How long?")
    assert parted("How long?", None) == ("", "How long?")
