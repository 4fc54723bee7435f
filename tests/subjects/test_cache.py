"""Answers on disk: what tells them apart, and what several processes and a kill do to them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.subjects.cache import FILE, Answer, Cache, key_of

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 8,
    "temperature": 1.0,
    "seed": 3,
}
WRITER = """
import sys
from pathlib import Path
from pipelines.subjects.cache import Answer, Cache
with Cache(Path(sys.argv[1]), "teacher.cache") as cache:
    for number in range(int(sys.argv[3])):
        cache.put(f"{sys.argv[2]} {number}", Answer(sys.argv[2], True, 1, 2, 0.5))
        cache.put(f"shared {number}", Answer(sys.argv[2], True, 1, 2, 0.5))
    print("there", flush=True)
    sys.stdin.readline()
"""


def test_an_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    said = Answer("né 🙂\n", False, None, 7, None)
    with Cache(tmp_path / "deep" / "er", "teacher.cache") as cache:
        assert cache.find("a") is None
        cache.put("a", said)
        cache.put("a", Answer("later", True, 1, 1, 1.0))
    with Cache(tmp_path / "deep" / "er", "teacher.cache") as again:
        assert again.find("a") == said
        assert len(again) == 1


def test_every_part_of_a_request_tells_answers_apart() -> None:
    others = [
        key_of("http://b/v1", BODY, 0),
        key_of("http://a/v1", BODY, 1),
        *(key_of("http://a/v1", BODY | {name: "other"}, 0) for name in (*BODY, "tools")),
    ]
    assert len({key_of("http://a/v1", BODY, 0), *others}) == 1 + len(others)
    assert key_of("http://a/v1", BODY | {"stream": False, "top_p": 1.0}, 0) == key_of("http://a/v1", BODY, 0)


def test_processes_share_it_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, name, "40"], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in ("first", "second")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"there\n"
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    with Cache(tmp_path, "teacher.cache") as cache:
        assert len(cache) == 3 * 40
        assert cache.find("second 39") == Answer("second", True, 1, 2, 0.5)
        shared = {cache.find(f"shared {number}") for number in range(40)}
        assert shared <= {Answer(name, True, 1, 2, 0.5) for name in ("first", "second")}


def test_what_is_no_cache_is_told_by_its_field(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("words " * 1000)
    with pytest.raises(UserError, match=r"teacher\.cache: .*answers\.sqlite can't be used as a cache"):
        Cache(tmp_path, "teacher.cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"teacher\.cache: "):
        Cache(tmp_path / "file", "teacher.cache")
