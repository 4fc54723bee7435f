"""Verifiers in real workers: what hangs, dies, errs or floods costs one answer its verdict, and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.grpo_math import heartbeat
from pipelines.config.compose import compose
from pipelines.config.paths import PROJECT
from pipelines.config.schema import Verifier
from pipelines.errors import UserError
from pipelines.tasks.verdict import Verdict
from pipelines.verification import Outcome, Verification, verification
from pipelines.verification.pool import Pool
from tests.tasks.math_cases import bombs, row_of

CONFIG = compose(["task=gsm8k", "task.verify=math"]).config
ROW = row_of("18")
OWN = """
import os, signal, subprocess, sys, time
from pathlib import Path
from pipelines.tasks.verdict import Verdict, VerifierFailed

HERE = Path(__file__).parent

def verify(completion, row):
    word, _, rest = completion.partition(" ")
    if word == "sleep":
        time.sleep(60)
    if word == "spin":
        9 ** 9 ** 9 ** 9
    if word == "child":
        process = subprocess.Popen(["sleep", "300"], start_new_session=True)
        (HERE / "child").write_text(str(process.pid))
        time.sleep(60)
    if word == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "exit":
        os._exit(3)
    if word == "grow":
        bytearray(2 ** 30)
    if word == "raise":
        raise ValueError("no such thing")
    if word == "lost":
        raise VerifierFailed("the server is gone")
    if word == "nothing":
        return None
    if word == "once" and not (HERE / "asked").exists():
        (HERE / "asked").touch()
        os._exit(1)
    if word == "pid":
        return Verdict(True, str(os.getpid()))
    if word == "modules":
        return Verdict("torch" in sys.modules, ",".join(sys.modules))
    return Verdict(completion == row.answer, completion)

LIMIT = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verification]:
    """A verification of the module above; its settings may be changed."""
    (tmp_path / "own_verifier.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def make(function: str = "verify", **changes: Any) -> Verification:
        task = CONFIG.task.model_copy(update={"verify": f"own_verifier:{function}"})
        return verification(task, settings(**{"time_s": 0.3, "max_failed": 1.0} | changes))

    return make


def settings(**changes: Any) -> Verifier:
    return CONFIG.verifier.model_copy(update=changes)


EARLIER: set[int] = set()  # what other tests left running: servers of a session, trackers


@pytest.fixture(scope="module", autouse=True)
def _earlier() -> None:
    EARLIER.update(process.pid for process in psutil.Process().children(recursive=True))


def children(recursive: bool = True) -> list[psutil.Process]:
    found = psutil.Process().children(recursive=recursive)
    return [process for process in found if process.pid not in EARLIER]


def test_answers_are_judged_in_their_order_by_workers(own: Callable[..., Verification]) -> None:
    texts = [str(number) for number in range(16, 21)] * 20
    with own(workers=3) as verified:
        found = verified.check(texts, [ROW] * len(texts))
        pids = {verified.check(["pid"], [ROW])[0].verdict for _ in range(3)}
    assert found == [Outcome(Verdict(text == "18", text), None) for text in texts]
    assert all(verdict is not None and verdict.parsed != str(os.getpid()) for verdict in pids)
    assert (verified.counts.total, verified.counts.failed, verified.counts.retried) == (103, 0, 0)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("sleep", "timeout"),
        ("spin", "timeout"),
        ("die", "died: SIGSEGV"),
        ("exit", "died: exit code 3"),
        ("grow", "memory"),
        ("raise", "error: ValueError: no such thing"),
        ("lost", "failed: the server is gone"),
        ("nothing", "error: returned None, expected a Verdict"),
    ],
)
def test_a_failure_is_no_verdict_and_costs_no_other_answer_its_own(
    own: Callable[..., Verification], text: str, failure: str
) -> None:
    with own(memory_mb=256) as verified:
        found = verified.check(["18", text, "17", "18"], [ROW] * 4)
        assert found[1] == Outcome(None, failure)
        assert [one.verdict for one in found if one.verdict] == [Verdict(t == "18", t) for t in ("18", "17", "18")]
        assert (verified.counts.total, verified.counts.failed, verified.counts.retried) == (4, 1, 1)
        assert verified.counts.kinds == {failure.partition(":")[0]: 1}


def test_an_answer_is_asked_once_more_of_another_worker(own: Callable[..., Verification]) -> None:
    with own(workers=1) as verified:
        before = verified.check(["pid"], [ROW])[0].verdict
        found = verified.check(["once", "pid"], [ROW] * 2)
    assert found[0] == Outcome(Verdict(False, "once"), None)
    assert found[1].verdict != before
    assert (verified.counts.failed, verified.counts.retried) == (0, 1)


def test_a_killed_worker_takes_its_children_along(own: Callable[..., Verification], tmp_path: Path) -> None:
    with own() as verified:
        assert verified.check(["child"], [ROW])[0].failure == "timeout"
        pid = int((tmp_path / "child").read_text())
        assert _gone([pid])
    assert not children()


def test_too_many_failures_stop_the_run(own: Callable[..., Verification]) -> None:
    with own(max_failed=0.05) as verified:
        verified.check(["raise"] + ["18"] * 18, [ROW] * 19)  # too few to tell
        verified.check(["18"], [ROW])  # 1 of 20 is no more than 5%
        with pytest.raises(UserError) as error:
            verified.check(["18", "raise hell", "18"], [ROW] * 3)
    told = str(error.value)
    assert told.startswith("task.verify: 2 of the last 23 answers have no verdict, more than verifier.max_failed=0.05")
    assert "2 error" in told
    assert f"row {ROW.id}, 'raise hell': error: ValueError: no such thing" in told


def test_failures_early_in_a_long_call_weigh_as_much(own: Callable[..., Verification]) -> None:
    with own(max_failed=0.05) as verified, pytest.raises(UserError, match="20 of the last 300"):
        verified.check(["raise"] * 20 + ["18"] * 280, [ROW] * 300)


def test_workers_know_nothing_of_the_trainer(own: Callable[..., Verification]) -> None:
    import torch  # noqa: F401  # the process that asks has it

    with own() as verified:
        assert verified.check(["modules"], [ROW])[0].verdict is not None
        assert not verified.check(["modules"], [ROW])[0].verdict.correct  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_verifier:verfy", "task.verify: own_verifier has no function 'verfy'; nearest valid name: verify"),
        ("own_verifier:LIMIT", "task.verify: own_verifier has no function 'LIMIT'"),
        ("no_verifier:verify", "task.verify: no module 'no_verifier'"),
        ("mth", "task.verify: expected a verifier's name .* nearest valid name: math"),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_verifier_that_is_not_there_is_told_at_once(name: str, reason: str) -> None:
    with (
        pytest.raises(UserError, match=reason),
        verification(CONFIG.task.model_copy(update={"verify": name}), settings()),
    ):
        pytest.fail("it started")
    assert not children()


def test_a_module_that_breaks_shows_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_verifier.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken = CONFIG.task.model_copy(update={"verify": "broken_verifier:verify"})
    with pytest.raises(UserError, match=r"(?s)task\.verify: the verifier can't be made.*ZeroDivisionError"):
        verification(broken, settings()).__enter__()


def test_an_audit_is_named_as_such(own: Callable[..., Verification]) -> None:
    with pytest.raises(UserError, match=r"^task\.audit: own_verifier has no function"):
        verification(CONFIG.task, settings(), "own_verifier:no").__enter__()
    with verification(CONFIG.task, settings(), "math_strict") as verified:
        found = [one.verdict for one in verified.check(["#### 18", "18"], [ROW] * 2)]
    assert [verdict is not None and verdict.correct for verdict in found] == [True, False]


def test_named_verifiers_that_cannot_fail_start_no_process() -> None:
    task = CONFIG.task.model_copy(update={"verify": "number"})
    with verification(task, settings()) as verified:
        assert verified.check(["#### 18", "17"], [ROW] * 2)[0] == Outcome(Verdict(True, "18"), None)
        assert verified.counts.total == 2
        assert not children()


def test_the_template_is_replaced_where_it_was_killed(own: Callable[..., Verification]) -> None:
    with own() as verified:
        (template,) = children(recursive=False)
        template.kill()
        found = verified.check(["18"] * 10, [ROW] * 10)
        assert [one.verdict for one in found] == [Verdict(True, "18")] * 10
    assert not children()


def test_a_signal_while_workers_are_busy_leaves_none(own: Callable[..., Verification]) -> None:
    class Signalled(BaseException):
        pass

    def stop(signum: int, frame: object) -> None:
        raise Signalled

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with own(time_s=30.0) as verified:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(Signalled):
                verified.check(["spin", "sleep", "spin"], [ROW] * 3)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not children()


@pytest.mark.usefixtures("own")
def test_nothing_is_left_of_a_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "from tests.verification.test_verification import *\n"
        "task = CONFIG.task.model_copy(update={'verify': 'own_verifier:verify'})\n"
        "with verification(task, settings(time_s=60.0)) as verified:\n"
        "    print(*[p.pid for p in children()], flush=True)\n"
        "    verified.check(['spin', 'sleep'], [ROW] * 2)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{PROJECT}{os.pathsep}{tmp_path}"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(psutil.pid_exists, pids))
        process.kill()
    assert _gone(pids)


def _gone(pids: list[int]) -> bool:
    for _ in range(100):
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_programs_have_the_time_that_the_sandbox_allows_them() -> None:
    code = CONFIG.task.model_copy(update={"verify": "code"})
    assert Pool(code, settings(time_s=1.0), None).limit_s == CONFIG.verifier.sandbox.wall_s + 1
    assert Pool(code, settings(time_s=30.0), None).limit_s == 30.0
    assert Pool(CONFIG.task, settings(time_s=1.0), None).limit_s == 1.0


@pytest.fixture(scope="module", params=["18", r"\frac{x^2+1}{2}"])
def checked(request: pytest.FixtureRequest) -> tuple[dict[str, Outcome], list[float], float]:
    """All bombs as one call: what became of each, the gaps between heartbeats, and the slowest of them alone."""
    row, texts = row_of(request.param), bombs()
    with verification(CONFIG.task, settings(max_failed=1.0)) as verified, heartbeat() as gaps:
        found = verified.check(list(texts.values()), [row] * len(texts))
        slowest = 0.0
        for text in texts.values():
            begun = time.monotonic()
            verified.check([text], [row])
            slowest = max(slowest, time.monotonic() - begun)
    return dict(zip(texts, found, strict=True)), gaps, slowest


def test_no_bomb_is_right_or_holds_up_the_process_that_asks(
    checked: tuple[dict[str, Outcome], list[float], float],
) -> None:
    found, gaps, slowest = checked
    assert len(found) >= 30
    assert [name for name, outcome in found.items() if outcome.verdict is not None and outcome.verdict.correct] == []
    assert gaps
    assert max(gaps) < 3
    # Twice the limit of an answer, as it is asked twice, and a margin for forking and for a busy machine.
    assert slowest < 2 * CONFIG.verifier.time_s + 1


def test_the_towers_are_refused_without_being_worked_out(
    checked: tuple[dict[str, Outcome], list[float], float],
) -> None:
    found, _, _ = checked
    assert found[r"9^{9^{9^{9}}}"] == Outcome(Verdict(False, r"9^{9^{9^{9}}}"), None)
    assert sum(outcome.failure is not None for outcome in found.values()) <= 2
