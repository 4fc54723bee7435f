"""Episodes of several turns, and a user's own environment."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from pipelines.dataset.row import Message
from pipelines.environments import replay, resolve_environment
from pipelines.environments.bank import Bank
from pipelines.environments.calls import Call
from pipelines.environments.environment import digest
from pipelines.environments.episode import play
from pipelines.environments.tools import answered, environment_class, offered, state_of
from pipelines.errors import UserError
from tests.environments.conftest import CARD, CHECKING, SAVINGS, STATE, MakeTask, row
from tests.environments.test_replay import MOVE, TRANSFER

OWN = "tests.environments.own_environment"


@dataclass
class Reply:
    text: str | None
    error: str | None = None
    finished: bool = True
    num_tokens: int | None = None


def call(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class Script:
    """Says what is written for each row, turn by turn; keeps what it was asked."""

    def __init__(self, *rows: list[Any]) -> None:
        self.rows, self.asked = [list(turns) for turns in rows], list[list[list[Message]]]()

    def __call__(self, messages: list[list[Message]], tools: Sequence[Mapping[str, Any]]) -> list[Any]:
        assert [tool["function"]["name"] for tool in tools] == ["freeze", "limit", "show", "transfer"]
        self.asked.append([list(one) for one in messages])
        return [self.rows[int(one[0]["content"])].pop(0) for one in messages]


def numbered(count: int) -> list[Any]:
    return [
        type(TRANSFER)(**{**TRANSFER.as_dict(), "prompt": [{"role": "user", "content": str(number)}]})
        for number in range(count)
    ]


def test_rows_go_on_together_until_each_says_a_text(make_task: MakeTask) -> None:
    script = Script([call("show", {}), call(*MOVE), "Done."], ["I won't."], [call(*MOVE), "Done."])
    rows = numbered(3)
    episodes = play(rows, script, environment_class("bank"), max_turns=5)
    assert [len(asked) for asked in script.asked] == [3, 2, 1]
    assert [episode.num_turns for episode in episodes] == [3, 1, 2]
    assert [episode.num_calls for episode in episodes] == [2, 0, 1]
    assert all(episode.finished and episode.num_failed == 0 for episode in episodes)
    verify = replay.verifier(make_task())
    verdicts = [verify(episode.text or "", row).correct for episode, row in zip(episodes, rows, strict=True)]
    assert verdicts == [True, False, True]
    shown, moved = episodes[0].messages[1], episodes[0].messages[3]
    assert shown["role"] == "tool"
    assert json.loads(shown["content"])["checking"] == {"id": CHECKING, "balance": 120}
    assert moved == {"role": "tool", "name": "transfer", "content": '{"ok":true}'}
    assert script.asked[2] == [[*rows[0].prompt, *episodes[0].messages[:4]]]


def test_several_calls_of_a_turn_are_made_in_their_order() -> None:
    first = call("limit", {"card": CARD, "amount": 900}) + "\n" + call("limit", {"card": CARD, "amount": 10})
    (episode,) = play(numbered(1), Script([first, call("show", {}), "Done."]), environment_class("bank"), 4)
    assert [message["role"] for message in episode.messages] == [
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert json.loads(episode.messages[4]["content"])["cards"]["3970"] == {"limit": 10}


def test_the_calls_of_the_last_turn_are_not_made() -> None:
    (episode,) = play(numbered(1), Script([call("show", {})] * 2), environment_class("bank"), max_turns=2)
    assert [message["role"] for message in episode.messages] == ["assistant", "tool", "assistant"]
    assert (episode.num_calls, episode.finished) == (1, False)


def test_failed_calls_are_answered_and_counted() -> None:
    turns = [call("close", {}), call("freeze", [CARD]), call("freeze", {"card": 1}), "Sorry."]
    (episode,) = play(numbered(1), Script(turns), environment_class("bank"), max_turns=9)
    told = [message["content"] for message in episode.messages if message["role"] == "tool"]
    assert told[0] == "{'error': 'Tool close not found.'}"
    assert "must be a mapping, not list" in told[1]
    assert told[2] == '{"error":"unknown card"}'
    assert (episode.num_calls, episode.num_failed) == (3, 3)


def test_replies_tell_tokens_errors_and_limits() -> None:
    script = Script(
        [Reply(call("show", {}), num_tokens=20), Reply("Done.", num_tokens=3)],
        [Reply(call("show", {}), num_tokens=20), Reply(None, error="timed out")],
        [Reply("I was going to", finished=False, num_tokens=5)],
        ["Done."],
    )
    episodes = play(numbered(4), script, environment_class("bank"), max_turns=4)
    assert [episode.num_tokens for episode in episodes] == [23, None, 5, None]
    assert [episode.finished for episode in episodes] == [True, False, False, True]
    assert (episodes[1].error, episodes[1].text) == ("timed out", None)


def test_episodes_of_one_batch_share_nothing() -> None:
    script = Script([call("freeze", {"card": CARD}), call("show", {}), "."], ["."], [call("show", {}), "."])
    episodes = play(numbered(3), script, environment_class("bank"), max_turns=4)
    frozen = [json.loads(message["content"]).get("cards", {}).get("3970") for message in episodes[0].messages[3:4]]
    assert frozen == [{"limit": 500, "frozen": True}]
    assert json.loads(episodes[2].messages[1]["content"])["cards"]["3970"] == {"limit": 500}


def test_a_box_takes_kept_as_json_and_begins_again() -> None:
    box = environment_class("bank")()
    for kept in ({"environment_seed": "1"}, '{"environment_seed": "1"}'):
        box.reset(prompt=[], kept=kept, id="x")
        assert state_of(box) == STATE
        assert answered(box, Call("freeze", {"card": CARD})) == ('{"ok":true}', False)


def test_an_environment_of_ones_own_is_played_and_verified(make_task: MakeTask) -> None:
    name = f"{OWN}:Lamps"
    task = make_task(environment=name)
    lamps = row({"red": [], "green": []}, [["press", {"lamp": "red"}]])
    asked = type(lamps)(**{**lamps.as_dict(), "answer": digest({"red": True, "green": False})})
    turns = iter([call("broken", {}), call("press", {"lamp": "red", "times": "3"}), "Lit."])
    (episode,) = play([asked], lambda messages, tools: [next(turns)], environment_class(name), 5)
    assert episode.messages[1]["content"] == "{'error': 'a fuse blew'}"
    assert episode.messages[3]["content"] == "click"
    assert episode.num_failed == 1
    assert replay.verifier(task)(episode.text or "", asked).correct
    assert not replay.strict(task)(episode.text or "", asked).correct


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bnak", "expected an environment's name or package.module:Class, got 'bnak'; nearest valid name: bank"),
        ("no.such:Thing", "no module 'no'"),
        (f"{OWN}:Lamp", "has no class 'Lamp'; nearest valid name: Lamps"),
        (f"{OWN}:Stateless", "has no tools, state"),
        (f"{OWN}:Unsorted", "expected tools in the order of their names, got press, broken"),
        (f"{OWN}:Nested", "the tool 'press', parameter 'times': expected type"),
        (f"{OWN}:Reserved", "'reset': expected the name of a public method"),
    ],
)
def test_what_is_no_environment_is_refused(name: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"^task\.environment: .*{re.escape(told)}"):
        environment_class(name)


def test_the_shipped_name_leads_to_the_bank() -> None:
    assert resolve_environment("bank") is Bank
    assert offered(environment_class("bank")) == Bank().tools()
    assert SAVINGS in [account[0] for account in STATE["accounts"]]
