"""The shell: commands over a small tree, what attacks come to, and rows whose trees are worked out without a shell."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.environments import check, replay
from pipelines.environments.calls import transcript
from pipelines.environments.environment import Environment, digest
from pipelines.environments.episode import play
from pipelines.environments.shell import Shell, world
from pipelines.environments.shell_rows import KINDS, generate
from pipelines.environments.tools import environment_class
from pipelines.errors import UserError
from pipelines.sandbox import commands
from pipelines.tasks.verdict import VerifierFailed
from tests.environments.attacking import processes, rows, spoiled, task, teacher

TREE: dict[str, bytes | None] = {"a.txt": b"one\ntwo\n", "b": None, "b/c.log": b"red error\n"}


def sh(command: str, tree: dict[str, bytes | None] = TREE, **limits: Any) -> commands.Ended:
    return commands.run(command, tree, commands.Limits(**limits))


def test_it_is_an_environment() -> None:
    assert isinstance(Shell(), Environment)
    assert [tool["function"]["name"] for tool in Shell().tools()] == ["sh"]
    check("shell")


def test_commands_change_the_tree_and_tell_their_output_and_status() -> None:
    ended = sh("mkdir d && mv a.txt d/x && sed -i s/red/blue/ b/c.log && wc -l < d/x > n; rm b/none; ls; exit 3")
    assert ended == commands.Ended(
        None,
        3,
        "rm: cannot remove 'b/none': No such file or directory\nb\nd\nn\n",
        {"b": None, "b/c.log": b"blue error\n", "d": None, "d/x": b"one\ntwo\n", "n": b"2\n"},
    )
    assert sh("ln a.txt h; ln -s a.txt s; printf 'x\\377' > \"$(printf 'n\\377')\"; rm -r b").tree == {
        "a.txt": b"one\ntwo\n",
        "h": b"one\ntwo\n",
        "n\udcff": b"x\xff",
    }


@pytest.mark.parametrize(
    ("command", "failure"),
    [
        ("sleep 100", "wall time"),
        ("f() { f | f & }; f; sleep 9", "wall time"),
        ("yes", "too much output"),
        ("head -c 10000000 /usr/bin/tar", "too much output"),
        ("yes > y", "too many or too large files"),
        ("for i in $(seq 100); do echo > f$i; done", "too many or too large files"),
        ("mkdir -p 1/2/3/4/5/6/7", "too many or too large files"),
        ("chmod 000 a.txt", "its files can't be read: ReadError"),
    ],
)
def test_a_command_that_runs_into_a_limit_has_changed_nothing_and_left_nothing(command: str, failure: str) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    assert sh(f"rm a.txt; {command}" if "a.txt" not in command else command, wall_s=0.6) == commands.Ended(
        failure, 0, "", None
    )
    assert not processes(before)
    assert sh("cat a.txt") == commands.Ended(None, 0, "one\ntwo\n", TREE)


@pytest.mark.parametrize(
    "command",
    [
        "while :; do :; done",
        "kill -9 1; kill -9 -1; exit 1",
        "setsid sleep 1000 & nohup sleep 1000 & (sleep 5; echo late > late) & exit 7",
        "touch /x /etc/x /usr/bin/x {folder}/x",
        "cat {file} /etc/passwd",
        "ls /proc /home /root /work/..?*",
        "unshare -r true || mount -t tmpfs x /tmp",
        "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))' || exit 5",
        "perl -e 'use Socket; socket(S, PF_INET, SOCK_STREAM, 0) or exit 1; exit 0'",
        "ulimit -v unlimited",
        "a=xxxxxxxx; while :; do a=$a$a; done",
        "mkfifo p",
    ],
)
def test_attacks_fail_within_and_are_not_felt_outside(tmp_path: Path, command: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("826143")
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with socket.create_server(("127.0.0.1", 0)) as port:
        port.settimeout(0)
        told = command.replace("{port}", str(port.getsockname()[1])).replace("{file}", str(secret))
        ended = sh(told.replace("{folder}", str(tmp_path)), processes=8, wall_s=20.0)
        with pytest.raises(BlockingIOError):
            port.accept()
    assert (ended.failure, ended.tree) == (None, TREE)
    assert ended.code != 0
    assert "826143" not in ended.output
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert not processes(before)


def test_processes_are_counted() -> None:
    ended = sh("for i in $(seq 30); do sleep 0.3 & done; echo all", processes=8)
    assert "all" not in ended.output
    assert "Cannot fork" in ended.output or "esource" in ended.output


def test_without_bubblewrap_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"task\.environment: bubblewrap isn't installed.*apt install bubblewrap"):
        check("shell")


def test_a_sandbox_that_fails_says_nothing_of_the_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (row,) = rows("shell", generate(1, 5, {}))
    verify = replay.verifier(task("shell"))
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no namespaces >&2\nexit 1\n")
    for path in (broken, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VerifierFailed, match="can't start a shell: no namespaces"):
        verify(transcript(row.completion), row)
    monkeypatch.undo()
    assert verify(transcript(row.completion), row).correct


def test_episodes_share_nothing_and_answers_are_short() -> None:
    first, second = Shell(), Shell()
    for one in (first, second):
        one.reset(kept={"environment_seed": "1"})
    begun = second.state()
    assert first.call("sh", {"command": "rm -r *"}) == "(no output)"
    assert first.state() == {"files": {}, "folders": []}
    assert second.state() == begun
    assert len(second.call("sh", {"command": "seq 5000"})) < 900
    assert json.loads(second.call("sh", {"command": "cat none"})) == {
        "error": "exit 1",
        "output": "cat: none: No such file or directory\n",
    }
    assert json.loads(second.call("sh", {"command": "yes"}))["error"] == "too much output: nothing is changed"
    for arguments in (None, {}, {"command": None}, {"command": "x" * 2000}, {"command": "\0"}, {"command": "\ud800"}):
        assert set(json.loads(second.call("sh", arguments))) == {"error"}
    assert json.loads(second.call("bash", {"command": "ls"})) == {"error": "unknown tool"}
    assert second.state() == begun
    assert [json.loads(second.call("sh", {"command": "sleep 9"}))["error"] for _ in range(3)][-1] == (
        "no time left in this episode"
    )


def right_tree(question: str, seed: str) -> dict[str, Any]:
    """What the sentence asks for, done on the texts by hand: no shell, nothing of the generator's."""
    tree = world(seed)
    files = {path: text for path, text in tree.items() if text is not None}
    folders = [path for path, text in tree.items() if text is None]
    named = re.findall(r"[a-z]+/\w+\.txt|\bf\d+\.txt", question)
    words = question.rstrip(".").split()
    if "*.txt" in question:
        folder, word = (
            next(f for f in folders if f"{f}/*" in question),
            words[words.index("have" if "have" in words else "with") + 1],
        )
        texts = [text for path, text in files.items() if path.startswith(f"{folder}/") and path.endswith(".txt")]
        files[named[-1]] = str(sum(word in line for text in texts for line in text.splitlines()))
    elif "number of lines" in question or question.startswith("Count"):
        files[named[1]] = str(files[named[0]].count("\n"))
    elif "sorted" in question or question.startswith("Sort"):
        files[named[2]] = "\n".join(sorted((files[named[0]] + files[named[1]]).splitlines()))
    elif "becomes" in question or question.startswith("Replace"):
        files[named[0]] = files[named[0]].replace(words[1], words[3])
    elif " if " in question or question.startswith("If"):
        if files[named[0]].count("\n") >= int(re.findall(r"(\d+) lines", question)[0]):
            del files[named[0]]
    elif "folder" in question:
        kind = next(kind for kind in (".tmp", ".log") if kind in question)
        files = {path: text for path, text in files.items() if not path.endswith(kind)}
        folders.append(re.findall(r"[a-z]+/f\d+", question)[0])
    elif question.startswith(("Delete every", "Remove all")):
        files = {path: text for path, text in files.items() if not path.endswith(".txt") or words[-1] not in text}
    elif named[0] in files:
        files[named[1] if "/" in named[1] else re.findall(r"\S+/f\d+\.txt", question)[0]] = files.pop(named[0])
    return {"files": {path: text.rstrip("\n") for path, text in files.items()}, "folders": sorted(folders)}


def test_demonstrations_verify_and_others_do_not() -> None:
    shell = task("shell")
    verify, audit = replay.verifier(shell), replay.strict(shell)
    asked = rows("shell", generate(48, 3, {}))
    assert {row.label for row in asked} == set(KINDS)
    for row in asked:
        own, kept = transcript(row.completion), row.kept or {}
        assert row.answer == digest(right_tree(row.prompt[0]["content"], kept["environment_seed"])), row.completion
        assert '"error' not in row.completion[1]["content"]
        assert verify(own, row).correct
        assert verify("Done.", row).correct == (kept["goal"] == "[]")
        if kept["goal"] != "[]":
            assert not verify(spoiled(row), row).correct
    for row in asked[:16]:
        assert audit(transcript(row.completion), row).correct


def test_a_teacher_plays_many_at_once() -> None:
    asked = rows("shell", generate(8, 5, {}))
    episodes = play(asked, teacher(asked), environment_class("shell"), max_turns=6)
    assert all(episode.finished and not episode.num_failed for episode in episodes)
    assert [episode.messages for episode in episodes] == [row.completion for row in asked]
