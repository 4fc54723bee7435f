"""Each kind changes what it says and nothing else; the same row is changed the same way."""

import csv
import re
from typing import Any, get_args

import pytest

from pipelines.config.paths import PROJECT
from pipelines.config.schema import Perturbation
from pipelines.dataset.context import block
from pipelines.dataset.row import Row
from pipelines.evaluation.perturb import BESIDE, KINDS, PREFIXES, SUFFIXES, perturb

TEXT = "Why was my card, which I got on 12/03 for 1,000 euros, declined at the 24 hour shop?"


def row(text: str, id: str = "r1", **more: Any) -> Row:
    prompt = more.pop("prompt", [{"role": "user", "content": text}])
    return Row(id, "toy", prompt, [], "a", "a", "toy.csv:1", "g", **more)


def changed(text: str, kind: str, seed: int = 0, id: str = "r1") -> str | None:
    found = perturb(row(text, id), kind, seed)
    return None if found is None else str(found[-1]["content"])


def ways(text: str, kind: str) -> set[str | None]:
    """What forty rows of one text become."""
    return {changed(text, kind, id=f"r{number}") for number in range(40)}


def num_errors(before: str, after: str) -> int:
    """Optimal string alignment distance: letters inserted, deleted, replaced, or two neighbours swapped."""
    rows = [list(range(len(after) + 1))]
    for i, a in enumerate(before, 1):
        rows.append([i])
        for j, b in enumerate(after, 1):
            best = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == after[j - 2] and before[i - 2] == b:
                best = min(best, rows[i - 2][j - 2] + 1)
            rows[i].append(best)
    return rows[-1][-1]


@pytest.fixture(scope="module")
def queries() -> list[str]:
    with (PROJECT / "data/banking77/test.csv").open(encoding="utf-8", newline="") as file:
        return [record["text"] for record in csv.DictReader(file)][::25]


def test_the_kinds_are_those_of_the_configuration() -> None:
    assert tuple(KINDS) == get_args(Perturbation)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_row_decide(kind: str, queries: list[str]) -> None:
    first = [changed(text, kind, 1, str(i)) for i, text in enumerate(queries)]
    assert [changed(text, kind, 1, str(i)) for i, text in enumerate(queries)] == first
    assert all(text != before for text, before in zip(first, queries, strict=True))
    other_seed = [changed(text, kind, 2, str(i)) for i, text in enumerate(queries)]
    other_rows = [changed(text, kind, 1, f"x{i}") for i, text in enumerate(queries)]
    assert (other_seed == first) == (other_rows == first) == (kind in ("upper", "lower"))


def test_a_typing_error_in_about_twenty_letters(queries: list[str]) -> None:
    for number, text in enumerate(queries):
        after = str(changed(text, "typos", 5, str(number)))
        letters = sum(character.isalpha() for character in text)
        # Two errors side by side may be one seen otherwise; there are never more, and never none.
        wanted = max(1, round(letters / 20))
        assert max(1, wanted - 1) <= num_errors(text, after) <= wanted, (text, after)
        assert re.sub(r"\D", "", after) == re.sub(r"\D", "", text)
        assert re.sub(r"\w", "", after) == re.sub(r"\w", "", text)


def test_typing_errors_are_of_four_kinds() -> None:
    found = ways("card", "typos")
    swapped, dropped, doubled = (
        {"acrd", "crad", "cadr"},
        {"ard", "crd", "cad", "car"},
        {"ccard", "caard", "carrd", "cardd"},
    )
    beside = {"card"[:i] + key + "card"[i + 1 :] for i in range(4) for key in BESIDE["card"[i]]}
    assert found <= swapped | dropped | doubled | beside
    assert all(found & kind for kind in (swapped, dropped, doubled, beside))
    assert {key: set(BESIDE[key]) for key in "qgm"} == {"q": set("wa"), "g": set("fhtyvb"), "m": set("njk")}
    # The case stays, and a letter that no key has is only moved.
    assert {str(text).isupper() for text in ways("CARD", "typos")} == {True}
    assert ways("ßßß", "typos") == {"ßß", "ßßßß"}


def test_short_words_are_spared_where_there_are_others() -> None:
    assert {str(text)[:6] for text in ways("I do: cards", "typos")} == {"I do: "}
    assert ways("no", "typos") - {None}


def test_typing_errors_keep_apart_and_inside_words() -> None:
    assert "ab cdef" not in ways("abc def", "typos")
    # Two errors are due, and one word has room for them, at its ends: where the first is within, there is but one.
    text = "abcd" + " x" * 36
    errors = {(num_errors(text, str(after)), "bc" in str(after)) for after in ways(text, "typos")}
    assert {count for count, _ in errors} == {1, 2}
    assert (2, True) in errors


def test_case() -> None:
    assert changed(TEXT, "upper") == TEXT.upper()
    assert changed(TEXT, "lower") == TEXT.lower()


def test_politeness_goes_around() -> None:
    found = ways(f"{TEXT}\n", "polite")
    before = {text for text in PREFIXES if any(str(each).startswith(text) for each in found)}
    behind = {text for text in SUFFIXES if any(str(each).endswith(text) for each in found)}
    assert (before, behind) == (set(PREFIXES), set(SUFFIXES))
    assert found <= {f"{p}{TEXT}{s}" for p in ("", *PREFIXES) for s in ("", *SUFFIXES)} - {TEXT}
    sides = {(str(each).startswith(PREFIXES), str(each).endswith(SUFFIXES)) for each in found}
    assert sides == {(True, False), (False, True), (True, True)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "No card, 1,5 days on?",
            {
                "No card 1,5 days on",
                "No card,, 1,5 days on??",
                "No card , 1,5 days on ?",
                "No  card,  1,5  days  on?",
            },
        ),
        ("Where is it", {"Where  is  it", "Where is it."}),
        ("Wait...", {"Wait", "Wait......"}),
        ("Hi", {"Hi."}),
    ],
)
def test_punctuation(text: str, found: set[str]) -> None:
    assert ways(text, "punctuation") == found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["12 + 7 = ?", "", "???"])
def test_without_letters_there_is_nothing_to_change(kind: str, text: str) -> None:
    assert perturb(row(text), kind, 0) is None


def test_what_stays_as_it_is_is_left_out() -> None:
    assert changed("WHERE IS IT", "upper") is None
    assert changed("where is it", "lower") is None
    assert changed("カードはどこ", "upper") is None
    assert changed("カードはどこ", "typos") is not None


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_last_question_changes_and_passages_stay(kind: str) -> None:
    told = [
        {"role": "system", "content": "Route it."},
        {"role": "user", "content": "Hi, where is it?"},
        {"role": "assistant", "content": "Where is what?"},
    ]
    passages = ["The Card, when it is lost, is blocked.", "Abroad, it takes Nine days."]
    shown = block(passages)
    own = (
        "Know this: Abroad,  it takes\nNine days. Why, then, has Mine not come? The Card, when it is lost, is blocked."
    )
    for content, kept in (
        (f"{shown}Where, then, is Mine?", [shown]),
        (own, ["Abroad,  it takes\nNine days.", passages[0]]),
    ):
        for number in range(10):
            prompt = [*told, {"role": "user", "content": content}]
            found = perturb(row("", f"r{number}", prompt=prompt, context=passages), kind, 0)
            assert found is not None
            assert found[:-1] == told
            after = str(found[-1]["content"])
            assert after != content
            for text in kept:
                assert after.count(text) == 1
            if kept == [shown]:
                assert after.startswith(shown)
            assert prompt[-1]["content"] == content


def test_without_a_user_there_is_nothing_to_change() -> None:
    assert perturb(row("", prompt=[{"role": "system", "content": "Hello, you"}]), "upper", 0) is None
