"""Generated tasks: right by an account of their own, the same from the same seed, and read by prepare."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from pipelines.config.paths import CONF, PROJECT
from pipelines.config.schema import Source
from pipelines.dataset.shapes import Reader
from pipelines.environments.bank import world
from pipelines.environments.rows import KINDS, generate
from pipelines.errors import UserError


def right_state(question: str, seed: str) -> dict[str, Any]:
    """What the sentence asks for, read by patterns and done by hand on the tables: nothing of the generator's."""
    tables = world(seed)
    accounts = {row[0]: list(row) for row in tables["accounts"]}
    cards = {row[0]: [row[0], row[1], row[2], row[3]] for row in tables["cards"]}
    own = {row[2]: row[0] for row in tables["accounts"] if row[1] == 1}
    ledger: list[list[int]] = []

    def account(name: str) -> int:
        return int(name.removeprefix("account ")) if name.startswith("account ") else own[name]

    for part in re.split(r" and ", question.rstrip(".").removeprefix("Please ")):
        part = part[0].lower() + part[1:]
        numbers = [int(number) for number in re.findall(r"\d+", part)]
        place = r"(checking|savings|travel|account \d+)"
        if part.startswith(("raise", "card")) and ("more limit" in part or part.startswith("raise")):
            cards[numbers[0]][2] += numbers[1] * 100
        elif "limit" in part:
            cards[numbers[0]][2] = numbers[1] * 100
        elif "card" in part:
            cards[numbers[0]][3] = 1
        else:
            least = re.search(rf"(?:{place} has at least|{place} holds) (\d+)", part)
            moved = re.search(r"(?:move|send|transfer) (\d+)", part)
            target = re.search(rf"to {place}", part)
            source = re.search(rf"from {place}", part) or least
            assert moved is not None
            assert target is not None
            assert source is not None
            payer = account(next(filter(None, source.groups())))
            payee, cents = account(target.group(1)), int(moved.group(1)) * 100
            enough = least is None or accounts[payer][4] >= int(least.group(3)) * 100
            usable = all(accounts[i][3] == "USD" and accounts[i][5] == "open" for i in (payer, payee))
            if enough and usable and accounts[payer][4] >= cents:
                accounts[payer][4] -= cents
                accounts[payee][4] += cents
                ledger.append([payer, payee, cents])
    return {
        "customers": [list(row) for row in tables["customers"]],
        "accounts": sorted(accounts.values()),
        "cards": sorted(cards.values()),
        "transfers": sorted(ledger),
    }


def test_the_answers_are_what_another_reading_of_the_questions_gives() -> None:
    import hashlib

    records = list(generate(420, 3, {"max_steps": 4}))
    assert {record["label"] for record in records} == set(KINDS)
    for record in records:
        state = right_state(record["messages"][0]["content"], record["environment_seed"])
        written = json.dumps(state, sort_keys=True)
        expected = hashlib.sha256(written.encode()).hexdigest()[:16]
        assert record["answer"] == expected, record["messages"][0]["content"]


def test_no_demonstration_holds_a_failed_call_and_all_end_in_a_word() -> None:
    for record in generate(210, 4, {"max_steps": 4}):
        told = [json.loads(message["content"]) for message in record["messages"] if message["role"] == "tool"]
        assert all("error" not in answer for answer in told)
        assert record["messages"][-1]["content"] == ("Done." if json.loads(record["goal"]) else "No.")


def test_the_share_that_is_right_without_a_call_is_small() -> None:
    records = list(generate(700, 5, {}))
    idle = sum(record["goal"] == "[]" for record in records)
    assert 0.14 < idle / 700 < 0.24  # decline, 1/7, and a third of "if", 1/21: 0.19


def test_questions_differ_and_the_seeds_share_few() -> None:
    first, second = (
        [record["messages"][0]["content"] for record in generate(count, seed, {})]
        for count, seed in ((1500, 1), (300, 2))
    )
    assert len(set(first)) == 1500
    assert len(set(first) & set(second)) <= 3


def test_the_same_seed_gives_the_same_rows_in_another_process() -> None:
    code = "import json; from pipelines.environments.rows import generate; print(json.dumps(list(generate(40, 9, {}))))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, cwd=PROJECT, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert json.loads(runs[0]) == json.loads(json.dumps(list(generate(40, 9, {}))))
    assert json.loads(runs[0])[:10] == list(json.loads(json.dumps(list(generate(10, 9, {})))))


def test_settings_choose_kinds_and_steps() -> None:
    records = list(generate(60, 1, {"kinds": ["several"], "max_steps": 4}))
    assert {record["label"] for record in records} == {"several"}
    assert {len(json.loads(record["goal"])) for record in records} == {2, 3, 4}
    assert {len(json.loads(record["goal"])) for record in generate(60, 1, {"kinds": ["several"]})} == {2}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": ["if"]}, "settings: bank knows kinds and max_steps, got 'kind'"),
        ({"kinds": ["iff"]}, "got 'iff'; nearest valid name: if"),
        ({"kinds": []}, "settings: kinds: expected a list"),
        ({"kinds": "if"}, "settings: kinds: expected a list"),
        ({"max_steps": 1}, "settings: max_steps: expected 2 to 4, got 1"),
        ({"max_steps": True}, "settings: max_steps: expected 2 to 4, got True"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        list(generate(1, 1, settings))


def test_prepare_reads_them_as_conversations() -> None:
    task = yaml.safe_load((CONF / "task/bank.yaml").read_text(encoding="utf-8"))
    defaults = yaml.safe_load((CONF / "source.yaml").read_text(encoding="utf-8"))
    reader = Reader(Source(**{**defaults, **task["sources"]["train"]}))
    for record in generate(14, 1, {}):
        draft = reader.read(record)
        assert reader.shape == "messages"
        assert draft.answer == record["answer"]
        assert draft.label == record["label"]
        assert draft.kept == {"environment_seed": record["environment_seed"], "goal": record["goal"]}
        assert draft.tools == record["tools"]
        assert len(draft.prompt) == 1
        assert draft.completion == record["messages"][1:]
