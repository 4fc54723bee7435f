"""The notebook: cells in the sandbox, the answer that is handed in, and what attacks come to."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.environments import check, notebook, replay, runs_programs
from pipelines.environments.calls import transcript
from pipelines.environments.environment import Environment
from pipelines.environments.episode import play
from pipelines.environments.notebook import EPISODE_S, Notebook, canonical, world
from pipelines.environments.notebook_rows import KINDS, generate
from pipelines.environments.tools import environment_class
from pipelines.tasks import runs_programs as verify_runs_programs
from tests.environments.attacking import processes, rows, spoiled, task, teacher


@pytest.fixture
def book() -> Notebook:
    made = Notebook()
    made.reset(kept={"environment_seed": "1"})
    return made


def run(book: Notebook, code: str) -> str:
    return book.call("run", {"code": code})


def test_it_is_an_environment_that_runs_programs(book: Notebook) -> None:
    assert isinstance(book, Environment)
    assert [tool["function"]["name"] for tool in book.tools()] == ["run", "submit"]
    check("notebook")
    assert [runs_programs(name) for name in ("bank", "database", "notebook", "shell")] == [False, False, True, True]
    assert verify_runs_programs(task("notebook"))
    assert not verify_runs_programs(task("bank"))


def test_names_stay_and_the_last_value_is_told(book: Notebook) -> None:
    assert run(book, "x = 5") == "(no output)"
    assert run(book, "print('a')\nx + 1") == "a\n6\n"
    assert run(book, "print(x)\nx = 1 / 0") == '{"error":"line 2: ZeroDivisionError: division by zero","output":"5\\n"}'
    assert run(book, "x = 7\nraise SystemExit") == '{"error":"line 2: SystemExit"}'
    assert (
        run(book, "x, len(rows), rows[0] == dict(zip(data.split()[0].split(','), rows[0].values()))")
        == "(7, 14, True)\n"
    )
    assert json.loads(run(book, "def f(:"))["error"].startswith("line 1: SyntaxError")
    assert run(book, "sum(r['quantity'] for r in rows)") == f"{sum(row['quantity'] for row in world('1'))}\n"
    other = Notebook()
    other.reset(kept={"environment_seed": "2"})
    assert json.loads(run(other, "x"))["error"] == "line 1: NameError: name 'x' is not defined"


def test_the_state_is_what_was_handed_in_last(book: Notebook) -> None:
    assert book.state() == {"answer": None}
    for answer in ("1", 12.50):
        assert book.call("submit", {"answer": answer}) == '{"ok":true}'
    run(book, "1")
    assert book.state() == {"answer": "12.5"}
    book.reset(kept={"environment_seed": "1"})
    assert book.state() == {"answer": None}


def test_numbers_are_compared_as_numbers() -> None:
    told = {"012": "12", "12.0": "12", "+1.50": "1.5", "-0.0": "0", "100": "100", " Rio  de Janeiro": "rio de janeiro"}
    assert {text: canonical(text) for text in told} == told
    assert [canonical(text) for text in ("nan", "1e3", "9" * 21)] == ["nan", "1e3", "9" * 21]


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        [],
        {},
        {"code": None},
        {"code": "1", "x": 1},
        {"code": "x" * 5000},
        {"code": "\ud800"},
        {"code": "\0"},
        {"code": 1},
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_malformed_calls_are_answered(book: Notebook, arguments: Any) -> None:
    assert set(json.loads(book.call("run", arguments))) == {"error"}
    assert set(json.loads(book.call("submit", arguments))) == {"error"}
    assert json.loads(book.call("state", {"code": "1"})) == {"error": "unknown tool"}
    assert book.state() == {"answer": None}


def test_attacks_are_answered_in_short_and_leave_nothing(book: Notebook, tmp_path: Path) -> None:
    run(book, "1")
    interpreter = psutil.Process(notebook._open().processes[0])
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    attacks = {
        "import os; os._exit(0)": "it ended early",
        "import os; os.fork()": "Operation not permitted",
        "import os; os.execv('/bin/sh', ['sh'])": "",
        "import socket; socket.create_connection(('127.0.0.1', 80))": "Operation not permitted",
        f"open({str(tmp_path / 'made')!r}, 'w')": "",
        f"print(open({__file__!r}).read())": "No such file",
        "import os; os.kill(1, 9); os.kill(-1, 9)": "Operation not permitted",
        "a = [0] * 10**9": "MemoryError",
        "import os\nwhile True: os.write(1, b'x' * 4096)": "output",
        "import sys; sys.stdout = None; raise ValueError('x' * 10**6)": "ValueError: xxx",
        "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E": "line 3: E",
        "def r(): r()\nr()": "RecursionError",
        "global _told; import __main__; __main__.run_cells = None; __main__._told = 5; 1 / 0": "",
    }
    for code, expected in attacks.items():
        told = run(book, code)
        assert expected in json.loads(told)["error"], code
        assert len(told) < 400
        book.reset(kept={"environment_seed": "1"})
    assert len(run(book, "print('x' * 10**7)")) < 1100
    assert not list(tmp_path.iterdir())
    own = {process.pid for process in interpreter.children(recursive=True)}
    assert not processes(before | own)
    assert run(book, "1 + 1") == "2\n"


def test_an_episode_has_little_time_and_few_cells(book: Notebook) -> None:
    begun, errors = time.monotonic(), []
    for _ in range(20):
        errors.append(json.loads(run(book, "while True: pass"))["error"])
    assert time.monotonic() - begun < EPISODE_S + 4
    assert errors[0] in ("CPU time", "wall time")
    assert errors[-1] == "no time left in this episode"
    assert book.call("submit", {"answer": "1"}) == '{"ok":true}'
    book.reset(kept={"environment_seed": "1"})
    told = [run(book, "1") for _ in range(13)]
    assert told[:3] == ["1\n"] * 3
    assert set(json.loads(told[12])) == {"error"}


def test_a_fork_has_a_sandbox_of_its_own(book: Notebook) -> None:
    run(book, "1")
    parent = notebook._open()
    pid = os.fork()
    if not pid:
        right = run(book, "2") == "2\n" and notebook._open() is not parent
        notebook._open().close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run(book, "3") == "3\n"


def right_answer(question: str, seed: str) -> str:
    """The answer by a third program, from the question's words."""
    low, *others = [int(number) for number in re.findall(r"\d+", question)]
    table = [row for row in world(seed) if others and low <= row["price"] <= others[0]]
    if "power" in question or "**" in question:
        found = 1
        for _ in range(others[0]):
            found = found * low % others[1]
        return str(found)
    if "primes" in question:
        composite = {n for d in range(2, 60) for n in range(2 * d, others[0] + 1, d)}
        return str(len(set(range(low, others[0] + 1)) - composite))
    if "item" in question.lower():
        best = sorted(table, key=lambda row: row["price"] * row["quantity"], reverse="largest" in question)
        return str(best[0]["item"]) if best else "none"
    if "tied" in question:
        cities = sorted({row["city"] for row in table})
        sums = [sum(row["quantity"] for row in table if row["city"] == city) for city in cities]
        return cities[sums.index(max(sums))].lower() if cities else "none"
    if " city " in question or "rows of" in question:
        return str(sum(row["city"] in question for row in table))
    times = "times" in question
    return str(sum(row["quantity"] * (row["price"] if times else 1) for row in table))


def test_demonstrations_verify_and_others_do_not() -> None:
    book = task("notebook")
    verify, audit = replay.verifier(book), replay.strict(book)
    asked = rows("notebook", generate(42, 3, {}))
    assert {row.label for row in asked} == set(KINDS)
    for row in asked:
        own, calls = transcript(row.completion), json.loads((row.kept or {})["goal"])
        assert calls == [["submit", {"answer": calls[0][1]["answer"]}]]
        assert canonical(calls[0][1]["answer"]) == right_answer(
            row.prompt[0]["content"], (row.kept or {})["environment_seed"]
        )
        assert row.completion[1]["content"].strip() == calls[0][1]["answer"]
        assert verify(own, row).correct
        assert audit(own, row).correct
        assert not verify(spoiled(row), row).correct
        assert not verify(own.replace('"answer": "', '"answer": "9'), row).correct


def test_a_teacher_plays_many_at_once() -> None:
    asked = rows("notebook", generate(14, 5, {}))
    episodes = play(asked, teacher(asked), environment_class("notebook"), max_turns=6)
    assert all(episode.finished and not episode.num_failed for episode in episodes)
    assert [episode.messages for episode in episodes] == [row.completion for row in asked]
