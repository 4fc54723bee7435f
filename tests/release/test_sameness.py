"""What has to be as it was, held against what is here."""

from dataclasses import replace

import pytest

from pipelines.release.sameness import Here, conditions, same_code
from tests.release.family import ancestry

MADE = ancestry(3)
HERE = Here(
    commit=MADE.commit,
    dirty=False,
    code="other",
    lock=MADE.lock,
    libraries=MADE.libraries,
    base="a" * 40,
    base_files={},
    sources={str(source["name"]): str(source["sha256"]) for source in MADE.sources},
    known_commit=True,
)
NAME = str(MADE.sources[1]["name"])


def differing(here: Here, made: object = MADE, endpoints: tuple[str, ...] = ()) -> dict[str, str]:
    assert isinstance(made, type(MADE))
    return {one.name: " ".join(one.differs) for one in conditions(made, here, endpoints) if one.differs}


def test_nothing_differs() -> None:
    assert differing(HERE) == {}
    assert all(one.told for one in conditions(MADE, HERE))


@pytest.mark.parametrize(
    ("changed", "name", "told"),
    [
        ({"lock": "0" * 64}, "lock", "eeeeeeeeeeee then, 000000000000 here"),
        ({"libraries": {"torch": "2.12.0", "peft": "0.21.2"}}, "libraries", "torch: 2.13.0 then, 2.12.0 here"),
        ({"libraries": {"torch": "2.13.0"}}, "libraries", "peft: 0.21.2 then, none here"),
        ({"base": "b" * 40}, "base", "aaaaaaaaaaaa then, bbbbbbbbbbbb here"),
        (
            {"base": "sha256:00", "base_files": {"config.json": "1" * 64, "model.safetensors": "3" * 64}},
            "base",
            "then, sha256 00 here (model.safetensors)",
        ),
        (
            {"sources": {**HERE.sources, NAME: "5" * 64}},
            "sources",
            f"{NAME} (data/1.csv): sha256 000000000000 then, 5555",
        ),
        (
            {"sources": {**HERE.sources, NAME: None}},
            "sources",
            f"{NAME} (data/1.csv): sha256 000000000000 then, not there",
        ),
        ({"commit": "1" * 40, "known_commit": False}, "code", "isn't in this repository; fetch it"),
    ],
)
def test_what_differs_is_named_alone(changed: dict[str, object], name: str, told: str) -> None:
    found = differing(replace(HERE, **changed))  # type: ignore[arg-type]
    assert list(found) == [name]
    assert told in found[name]


def test_another_commit_that_is_known_can_be_checked_out() -> None:
    there = replace(HERE, commit="1" * 40, dirty=True)
    assert differing(there) == {}
    assert not same_code(MADE, there)


def test_changes_that_nobody_kept_are_told_unless_the_package_is_the_same() -> None:
    dirty = replace(MADE, dirty=True)
    assert "nobody kept" in differing(HERE, dirty)["code"]
    assert differing(replace(HERE, code="d" * 64), dirty) == {}
    assert "outside of a git checkout" in differing(HERE, replace(MADE, commit=None))["code"]


def test_content_that_only_reading_tells_is_no_difference() -> None:
    sources = [{**source, "kind": "sql"} for source in MADE.sources]
    unread = dict.fromkeys(HERE.sources)
    assert differing(replace(HERE, sources=unread), replace(MADE, sources=sources)) == {}


def test_a_teacher_that_is_asked_again_is_told() -> None:
    assert differing(HERE, endpoints=("http://here/v1",)) == {
        "teacher": "http://here/v1: an endpoint may answer otherwise today"
    }
