"""Programs run and judged: right and wrong ones, limits, failures of the sandbox itself, servers, MBPP."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.config.paths import PROJECT
from pipelines.errors import UserError
from pipelines.sandbox.sandbox import Ran, Sandbox, check_isolation
from pipelines.tasks.verdict import VerifierFailed
from tests.sandbox.attacks import ATTACKS, RIGHT, TESTS, WIN
from tests.sandbox.server import serving
from tests.sandbox.settings import sandbox_settings

FORKS = """
import os, time
made = 0
try:
    while made < 50:
        if not os.fork():
            time.sleep(9)
        made += 1
except OSError:
    pass
def forks():
    return made
"""
HALF = "def half(x):\n    return x / 2\n"


@pytest.fixture(scope="module", params=[True, False], ids=["fresh", "shared"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    settings = sandbox_settings(fresh_namespaces=request.param, cpu_s=0.4, wall_s=5.0, memory_mb=128, output_kb=8)
    with Sandbox(settings) as made:
        yield made


@pytest.mark.parametrize(
    ("code", "setup", "tests"),
    [
        (HALF, "", ["assert half(3) == 1.5", "assert half(0) == 0"]),
        (HALF, "import math", ["assert math.isclose(half(math.pi), 1.5707, abs_tol=1e-3)"]),
        ("def f():\n    return float('nan'), float('-inf')", "", ["assert str(f()) == '(nan, -inf)'"]),
        ("def f(x):\n    return (n * n for n in range(x))", "", ["assert list(f(3)) == [0, 1, 4]"]),
        (
            "def f():\n    return {1: (2, [3]), 'a': {4}, b'b': frozenset([5]), None: 2j}",
            "",
            ["assert f() == {1: (2, [3]), 'a': {4}, b'b': frozenset([5]), None: 2j}"],
        ),
        (
            "from collections import *\ndef f():\n    return Counter('aab'), deque([1]), OrderedDict(a=1)",
            "import collections as c",
            ["assert f() == (c.Counter('aab'), c.deque([1]), {'a': 1})"],
        ),
        ("def f():\n    return 3 ** 5000, -(2 ** 53), True", "", ["assert f() == (3 ** 5000, -(2 ** 53), 1)"]),
        (
            "class Node:\n    def __init__(self, v):\n        self.v = v\ndef value(n):\n    return n.v",
            "root = Node(5)\nroot.v += 1",
            ["assert value(root) == 6"],
        ),
        ("def sum(a, b):\n    return a * b", "", ["assert sum(2, 3) == 6"]),
        ("def f():\n    return None", "", ["assert f() is None", "assert not f()"]),
        ("def f():\n    return '\\ud800\\n\\x00'", "", ["assert f() == '\\ud800\\n\\x00'"]),
        (
            "import dataclasses, socket\n@dataclasses.dataclass\nclass P:\n    x: int\ndef f():\n    return P(3)",
            "",
            ["assert f().x == 3"],
        ),
        ("import gc, sys\ndef f():\n    return gc.isenabled(), sys.stdin.read()", "", ["assert f() == (True, '')"]),
        (
            "import resource as r\ndef f(of):\n    return r.getrlimit(getattr(r, 'RLIMIT_' + of))",
            "",
            ["assert f('CPU') == (1, 2)", "assert f('FSIZE') == (0, 0)", "assert f('NOFILE') == (64, 64)"],
        ),
        ("print('some words')\nif __name__ == '__main__':\n    one = 1", "", ["assert one == 1"]),
    ],
)
def test_right_programs_pass(sandbox: Sandbox, code: str, setup: str, tests: list[str]) -> None:
    assert sandbox.run(code, setup, tests) == Ran(True, None)


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (HALF.replace("2", "3"), "assertion 1 of 2 doesn't hold"),
        ("def half(x):\n    return x / 2 if x else 1", "assertion 2 of 2 doesn't hold"),
        ("def half(x):\n    return 3 / x / 2 * x", "assertion 2 of 2: ZeroDivisionError: division by zero"),
        ("def half(x:\n", "SyntaxError: '(' was never closed (<program>, line 1)"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
        ("def halve(x):\n    return x / 2", "assertion 1 of 2: NameError: name 'half' is not defined"),
        ("def half(x):\n    return object()", "assertion 1 of 2: object, which isn't plain data"),
        ("def half(x):\n    return 'a', x", "assertion 1 of 2 doesn't hold"),
        ("raise SystemExit", "SystemExit"),
        ("while True:\n    pass", "CPU time"),
        ("import time\ntime.sleep(60)", "wall time"),
        ("held = bytearray(1 << 30)", "memory"),
        ("while True:\n    print('a line')", "output"),
        ("import ctypes\nctypes.string_at(0)", "died"),
        ("import os\nos._exit(0)", "it ended before its last test"),
        ("def half(x):\n    return 'x' * 70000", "results of more than 60000 bytes"),
        ("half = '\\0", "SyntaxError: unterminated string literal (detected at line 1) (<program>, line 1)"),
    ],
)
def test_wrong_programs_fail_with_a_reason(sandbox: Sandbox, code: str, failure: str) -> None:
    if failure == "wall time" and sandbox.settings.fresh_namespaces:
        pytest.skip("it takes five seconds, once is enough")
    assert sandbox.run(code, "", ["assert half(3) == 1.5", "assert half(0) == 0"]) == Ran(False, failure)


def test_a_test_that_cannot_be_parted_fails_every_program(sandbox: Sandbox) -> None:
    ran = sandbox.run(HALF, "", ["assert isclose(half(1), 0.5)"])
    assert ran == Ran(False, "test 1: half, isclose: one may compare, with the expected value")


def test_runs_are_the_same_each_time() -> None:
    """Neither the order of sets nor `random` differs between interpreters or between runs."""
    code = "import random\ndef f():\n    raise ValueError(list({'a', 'b', 'c', 'd', 'e'}), random.random())"
    told = set()
    for _ in range(2):
        with Sandbox(sandbox_settings()) as sandbox:
            told |= {sandbox.run(code, "", ["assert f() == 1"]).failure for _ in range(2)}
    assert len(told) == 1
    assert "ValueError" in str(told)


def test_nothing_passes_from_one_program_to_the_next(sandbox: Sandbox) -> None:
    left = "import sys, math, builtins\nbuiltins.kept = math.kept = sys.kept = 1\ndef f():\n    return 1"
    assert sandbox.run(left, "", ["assert f() == 1"]).passed
    look = "import sys, math, builtins\ndef f():\n    return [hasattr(m, 'kept') for m in (builtins, math, sys)]"
    assert sandbox.run(look, "", ["assert f() == [False, False, False]"]).passed


@pytest.mark.parametrize("which", [0, 1], ids=["runner", "judge"])
def test_a_killed_process_is_a_failure_and_starts_again(which: int) -> None:
    with Sandbox(sandbox_settings()) as sandbox:
        assert sandbox.run(RIGHT, "", TESTS).passed
        os.kill(sandbox.processes[which], signal.SIGKILL)
        os.waitid(os.P_PID, sandbox.processes[which], os.WEXITED | os.WNOWAIT)
        with pytest.raises(VerifierFailed, match="failed"):
            sandbox.run(RIGHT, "", TESTS)
        assert sandbox.run(RIGHT, "", TESTS).passed
        inner = psutil.Process(sandbox.processes[which]).children()[0]
        inner.kill()
        with pytest.raises(VerifierFailed):
            sandbox.run(RIGHT, "", TESTS)
        assert sandbox.run(RIGHT, "", TESTS).passed


def test_a_value_that_hangs_the_comparison_is_a_wrong_answer() -> None:
    with Sandbox(sandbox_settings(wall_s=1.0)) as sandbox:
        ran = sandbox.run("def f():\n    return 10 ** 9", "", ["assert 3 ** f() == 1"])
        assert ran == Ran(False, "its results can't be compared in time")
        assert sandbox.run(RIGHT, "", TESTS).passed


@pytest.mark.parametrize("backend", ["sandbox_fusion", "piston"])
def test_servers(backend: str) -> None:
    with serving() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        with Sandbox(sandbox_settings(backend=backend, url=url, wall_s=1.0)) as sandbox:
            assert sandbox.run(RIGHT, "", TESTS) == Ran(True, None)
            assert sandbox.run(f"print('noise', end='')\n{RIGHT}", "", TESTS) == Ran(True, None)
            assert sandbox.run(HALF, "", ["assert half(1) == 1"]) == Ran(False, "assertion 1 of 1 doesn't hold")
            assert sandbox.run("while True:\n    pass", "", TESTS) == Ran(False, "wall time")
            for name in (
                "os._exit(0)",
                "an object equal to all",
                "patched builtins",
                "look for the expected values in memory",
            ):
                assert not sandbox.run(ATTACKS[name], "", TESTS).passed, name
            for reply in (b"no JSON", b"[]", b'{"status": "SandboxError"}', b'{"run": {"status": "XX", "stdout": ""}}'):
                server.broken = reply  # type: ignore[attr-defined]
                with pytest.raises(VerifierFailed):
                    sandbox.run(RIGHT, "", TESTS)
    with Sandbox(sandbox_settings(backend=backend, url=url)) as sandbox, pytest.raises(VerifierFailed, match="refused"):
        sandbox.run(RIGHT, "", TESTS)


def test_isolation_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_isolation(sandbox_settings())
    check_isolation(sandbox_settings(backend="piston", url="http://127.0.0.1:9"))
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"verifier\.sandbox\.backend: .*No permissions.*user\.max_user_namespaces"):
        check_isolation(sandbox_settings())
    fake.unlink()
    with pytest.raises(UserError, match=r"verifier\.sandbox\.backend: .*no bwrap.*apt install bubblewrap"):
        check_isolation(sandbox_settings())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_it_needs_no_privilege() -> None:
    """The same as the user nobody, with the system's interpreter: root's home is closed to that one."""
    python, setpriv = shutil.which("python3.11", path="/usr/bin"), shutil.which("setpriv")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    script = (
        "from tests.sandbox.test_sandbox import nobody\nnobody()\n"
        if python and setpriv
        else pytest.skip("no interpreter outside root's home")
    )
    command = [str(setpriv), "--reuid", "65534", "--regid", "65534", "--clear-groups", str(python), "-B", "-c", script]
    environment = {"PYTHONPATH": f"{PROJECT}:{packages}", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def nobody() -> None:
    """Runs in the process of another user: right and wrong programs, and bombs that only the kernel's count stops."""
    assert os.geteuid()
    for fresh in (True, False):
        settings = sandbox_settings(fresh_namespaces=fresh, processes=3, cpu_s=0.3, wall_s=0.8)
        check_isolation(settings)
        with Sandbox(settings) as sandbox:
            assert sandbox.run(RIGHT, "", TESTS).passed
            for name in ("fork bomb", "thread bomb", "setsid daemon", "kill", "ctypes: new namespaces and mounts"):
                code = f"CANARY = '/etc/passwd'\nPID = {os.getpid()}\n{WIN}{ATTACKS[name]}"
                assert not sandbox.run(code, "", TESTS).passed, name
            assert sandbox.run(FORKS, "", ["assert forks() == 2"]) == Ran(True, None)


def test_mbpp(sandbox: Sandbox) -> None:
    """Reference programs pass their tests; the same programs under the next task's name don't pass that one's."""
    rows = [json.loads(line) for line in (PROJECT / "data/mbpp/validation.jsonl").read_text().splitlines()]
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        tests = json.loads(row["tests"])
        assert sandbox.run(row["code"], row["setup"], tests) == Ran(True, None), row["task_id"]
        name = tests[0].removeprefix("assert ").partition("(")[0]
        renamed = f"{other['code']}\n{name} = [v for v in list(globals().values()) if type(v) is type(lambda: 0)][-1]"
        assert not sandbox.run(renamed, row["setup"], tests).passed, row["task_id"]
