"""A teacher at an endpoint that goes away, and what tells tries apart."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from benchmarks import distillation_endpoint as measured
from pipelines.config.block import EndpointFields
from pipelines.config.compose import compose
from pipelines.errors import Refused, Unreachable
from pipelines.subjects.cache import FILE, Cache
from pipelines.subjects.completion import Asking
from pipelines.subjects.endpoint import GIVE_UP_AFTER, Endpoint, Recalled, Speak, position_of
from pipelines.subjects.subject import Question, Reply
from pipelines.subjects.teacher import find
from tests.generation.scripted import Answer, scripted
from tests.subjects.faulty_server import RIGHT_KEY
from tests.subjects.serving import Faulty


def endpoint(faulty: Faulty, patience_s: float | None = 5.0, **changes: Any) -> Endpoint:
    names = ("price_in", "price_out", "spending_limit", "api_key")
    given: dict[str, Any] = dict.fromkeys(names) | {"concurrency": 4, "timeout_s": 10.0, "retries": 1}
    fields = EndpointFields(**({"at": faulty.at, "model": "plain"} | given | changes))
    return Endpoint(fields, "teacher", first_pause_s=0.01, patience_s=patience_s)


def answers(asked: Endpoint, texts: list[str], number: int = 0, temperature: float = 1.0) -> list[Reply]:
    found: dict[int, Reply] = {}

    def talk(text: str) -> Any:
        def ask(speak: Speak) -> Reply:
            return speak(Question([{"role": "user", "content": text}]), number)

        return ask

    asked.converse([talk(text) for text in texts], Asking(8, temperature, seed=7), found.__setitem__)
    return [found[place] for place in range(len(texts))]


def test_a_killed_server_loses_nothing_and_is_asked_nothing_twice(tmp_path: Path) -> None:
    ran = measured.run(tmp_path / "x", (30, 2), away_s=0.5)
    assert len(ran.answered) == len(set(ran.answered)) == 60
    assert len({one.key for one in ran.seen}) == 60
    assert len(ran.seen) > 60  # what was under way when it was killed came again
    assert measured.asked_again(ran.seen) == 0


def test_idle_time_is_that_of_free_slots_while_work_is_left() -> None:
    seen = [measured.Seen("a", 0.0, 2.0), measured.Seen("b", 1.0, 3.0), measured.Seen("c", 2.5, 4.0)]
    seen.append(measured.Seen("d", 3.0, 9.0))
    # Two slots, full at 1: one is free from 2 to 2.5, the other is taken as it comes free at 3.
    assert measured.idle(seen, 2) == pytest.approx((0.5 / 2, 0.5 / 4, 0.5))
    twice = [measured.Seen("a", 0.0, 1.0), measured.Seen("a", 0.5, 2.0), measured.Seen("a", 1.5, 3.0)]
    assert measured.asked_again(twice) == 1


def test_a_row_of_its_own_fault_is_given_up_and_the_server_is_not(faulty: Faulty) -> None:
    texts = [f"{number} <<http:500>>" for number in range(GIVE_UP_AFTER + 5)]
    found = answers(endpoint(faulty), [*texts, "fine"])
    assert {reply.error for reply in found[:-1]} == {"HTTP 500: told to say 500 (3 tries)"}
    assert found[-1].text == "one two three four"


def test_a_broken_connection_is_tried_again_even_without_retries(faulty: Faulty) -> None:
    found = answers(endpoint(faulty, retries=0), ["<<drop|half|say:there>>"])
    assert found[0].text == "there"


def test_however_often_a_server_that_is_away_refuses_no_row_is_lost(faulty: Faulty) -> None:
    refused: list[bool] = []

    def answer(body: dict[str, Any]) -> Answer:
        away = len(server.bodies) >= 5 and len(refused) < 10
        refused.extend([True] * away)
        return 503 if away else str(body["messages"][-1]["content"])

    texts = [f"row {number}" for number in range(30)]
    with scripted(answer) as server:
        at = f"http://127.0.0.1:{server.server_port}/v1"
        found = answers(endpoint(faulty, at=at, retries=0), texts)
        assert [reply.text for reply in found] == texts
        assert sorted(body["messages"][-1]["content"] for body in server.bodies) == sorted(texts)
    assert len(refused) == 10


def test_a_row_outlasts_any_number_of_outages(faulty: Faulty) -> None:
    """Each of five: the row is refused, then the first look, and the second look finds the server back."""
    came: list[Any] = []

    def answer(body: dict[str, Any]) -> Answer:
        came.append(body["messages"][-1]["content"])
        return 503 if len(came) < 15 and len(came) % 3 != 0 else "there"

    with scripted(answer) as server:
        asked = endpoint(faulty, at=f"http://127.0.0.1:{server.server_port}/v1", retries=0)
        asked.checked = True
        assert [reply.text for reply in answers(asked, ["row"])] == ["there"]
    assert came == ["row", "Hi", "Hi"] * 5 + ["row"]


def test_a_server_that_stays_away_is_told(faulty: Faulty) -> None:
    asked = endpoint(faulty, patience_s=0.1, model="down")
    asked.checked = True
    with pytest.raises(
        Unreachable, match=r"teacher\.at: .* has been away for teacher\.patience_s=0\.1 seconds: HTTP 503"
    ):
        answers(asked, list("abcdefgh"))


def test_every_try_is_asked_once_with_a_seed_of_its_own_and_no_error_is_kept(
    faulty: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", RIGHT_KEY)
    texts = ["a", "b", "<<http:404|say:mended>>"]
    asked = endpoint(faulty, price_in=1e6, price_out=1e6, model="locked", api_key="env:TEACHER_KEY")
    with Cache(tmp_path, "teacher.cache") as cache:
        asked.cache = cache
        first = answers(asked, texts) + answers(asked, texts[:2], number=1)
        assert [reply.error is None for reply in first] == [True, True, False, True, True]
        spent, bodies = asked.spent, faulty.seen()["bodies"][1:]
        assert len({body["seed"] for body in bodies if body["messages"][0]["content"] == "a"}) == 2
        again = answers(asked, texts[::-1])
        assert [reply.text for reply in again] == ["mended", first[1].text, first[0].text]
        assert [isinstance(reply, Recalled) for reply in again] == [False, True, True]
        assert [reply.cost for reply in again[1:]] == [0.0, 0.0]
        assert asked.spent == spent + (again[0].cost or 0.0)
        assert answers(asked, ["a"], temperature=0.5)[0].cost != 0.0
    assert len(faulty.seen()["bodies"]) == 1 + 5 + 1 + 1
    held = sqlite3.connect(tmp_path / FILE).execute("SELECT * FROM answers").fetchall()
    assert len(held) == 6
    assert RIGHT_KEY.encode() not in (tmp_path / FILE).read_bytes()


def test_seeds_hang_on_the_question_and_the_try_alone() -> None:
    one, other = (Question([{"role": "user", "content": text}]) for text in ("a", "b"))
    assert position_of(one, 1) == position_of(one, 0) + 1
    assert position_of(one, 0) != position_of(other, 0)
    assert position_of(one, 0) != position_of(Question(one.messages, [{"name": "look"}]), 0)


@pytest.mark.parametrize(
    ("allowed", "refused"), [("null", False), ("[MIT,Apache-2.0]", False), ("[CC0-1.0]", True), ("[]", True)]
)
def test_a_gate_forbids_a_teacher_by_its_licence(allowed: str, refused: bool) -> None:
    at = ["teacher.kind=endpoint", "teacher.at=http://localhost:1/v1", "teacher.model=m"]
    license = "teacher.license={id: Apache-2.0, conditions: null, url: null}"
    config = compose([*at, license, f"gate.licenses.teachers={allowed}"]).config
    if not refused:
        assert find(config).license["id"] == "Apache-2.0"
        return
    with pytest.raises(Refused, match=r"^teacher.license: gate staging allows .*this one's is Apache-2.0") as told:
        find(config)
    assert told.value.exit_code == 3
