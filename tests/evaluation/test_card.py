"""A card is whole or refused with its line; drift is what a hand computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT, resolve
from pipelines.errors import UserError
from pipelines.evaluation.card import Card, Difference, distribution, read_card

TEXTS = ("capability", "labelled_by", "independence", "production", "limits")
WHOLE = {name: f"What {name} says." for name in TEXTS} | {"version": "2", "date": "2026-03-01"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "card.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


def card(shares: dict[str, float] | None) -> Card:
    return Card.model_validate({**WHOLE, "production_shares": shares})


def test_a_whole_card_is_read(write: Callable[..., Path]) -> None:
    found = read_card(write({**WHOLE, "production_shares": {"a": 0.25, "b": 0.75}}))
    assert [getattr(found, name) for name in TEXTS] == [WHOLE[name] for name in TEXTS]
    assert (found.version, found.date, found.production_shares) == ("2", "2026-03-01", {"a": 0.25, "b": 0.75})
    # A day that isn't quoted is a date to YAML.
    bare = yaml.safe_dump({name: WHOLE[name] for name in (*TEXTS, "version")}) + "date: 2026-03-01\n"
    assert read_card(write(bare)) == card(None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"capability": " \n"}, "capability: expected text that is not empty, got ' \\n'"),
        ({"limits": None}, "limits: expected text, got None"),
        ({"version": 1.0}, "version: expected text, got 1.0"),
        ({"date": "March"}, r"date: expected text of the form ^\d{4}-\d{2}-\d{2}$, got 'March'"),
        ({"production_shares": {"a": 0.5, "b": 0.4}}, "production_shares: expected shares with a sum of 1, got 0.9"),
        ({"production_shares": {"a": 1.5}}, "production_shares.a: expected less than or equal to 1, got 1.5"),
        ({"production_shares": {"a": "half"}}, "production_shares.a: expected a number, got 'half'"),
        ({"production_shares": ["a"]}, "production_shares: expected a mapping, got ['a']"),
        ({"owner": "me"}, "owner: unknown field"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_field(
    write: Callable[..., Path], change: dict[str, Any], said: str
) -> None:
    path = write({**WHOLE, **change})
    with pytest.raises(UserError) as error:
        read_card(path)
    assert str(error.value).startswith(f"{path}: {said}")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", [*TEXTS, "version", "date"])
def test_every_text_is_required(write: Callable[..., Path], name: str) -> None:
    path = write({other: text for other, text in WHOLE.items() if other != name})
    with pytest.raises(UserError) as error:
        read_card(path)
    assert str(error.value) == f"{path}: {name}: missing; a value is required"


def test_a_mistyped_field_is_told_once(write: Callable[..., Path]) -> None:
    path = write({("labeled_by" if name == "labelled_by" else name): text for name, text in WHOLE.items()})
    with pytest.raises(UserError) as error:
        read_card(path)
    assert str(error.value) == f"{path}: labeled_by: unknown field; nearest valid name: labelled_by"


def test_what_is_no_card(write: Callable[..., Path], tmp_path: Path) -> None:
    for content, said in (
        ("a: [", "task.card: .*: not YAML"),
        ("- a", "expected a mapping, got"),
        ("", "expected a mapp"),
    ):
        with pytest.raises(UserError, match=said) as error:
            read_card(write(content))
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"task\.card: .*none\.yaml: no such file"):
        read_card(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"task\.card: .*: can't be read"):
        read_card(tmp_path)


def test_drift_by_hand() -> None:
    labels = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    found = distribution(card({"a": 0.2, "b": 0.3, "d": 0.5}), labels)
    assert found is not None
    # |.5-.2| + |.3-.3| + |.2-0| + |0-.5|, halved
    assert found.total_variation == pytest.approx(0.5)
    assert [(one.label, round(one.heldout, 3), one.production) for one in found.differences] == [
        ("d", 0.0, 0.5),
        ("a", 0.5, 0.2),
        ("c", 0.2, 0.0),
        ("b", 0.3, 0.3),
    ]
    same = distribution(card({"a": 0.5, "b": 0.3, "c": 0.2}), labels)
    assert same is not None
    assert same.total_variation == pytest.approx(0)
    apart = distribution(card({"z": 1.0}), labels)
    assert apart is not None
    assert apart.total_variation == pytest.approx(1)


def test_the_largest_differences_are_shown() -> None:
    shares = {f"l{number:02d}": (number + 1) / 210 for number in range(20)}
    found = distribution(card(shares), ["other"])
    assert found is not None
    assert found.differences[0] == Difference("other", 1.0, 0.0)
    assert [one.label for one in found.differences[1:]] == [f"l{number:02d}" for number in range(19, 10, -1)]


def test_without_shares_or_labels_there_is_no_drift() -> None:
    assert distribution(card(None), ["a"]) is None
    assert distribution(card({"a": 1.0}), []) is None
    assert distribution(card({"a": 1.0}), ["", ""]) is None


WITH_CARD = [
    "support_routing",
    "clinc150",
    "gsm8k",
    "mbpp",
    "arithmetic",
    "reasoning_gym",
    "database",
    "notebook",
    "shell",
    "extraction",
    "bank",
]


@pytest.mark.parametrize("task", WITH_CARD)
def test_the_shipped_cards_are_whole(task: str) -> None:
    named = compose([f"task={task}"]).config.task.card
    assert named is not None
    found = read_card(resolve(named))
    assert min(len(getattr(found, name)) for name in TEXTS) > 70
    assert found.production_shares is None
    assert "no production" in found.production


def test_every_shipped_set_that_is_held_out_has_a_card() -> None:
    named = {compose([f"task={task}"]).config.task.card for task in WITH_CARD}
    assert named == {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "data").glob("*/card.yaml")}
