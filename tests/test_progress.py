"""What is shown while a stage works."""

import os
import pty
import re
import subprocess
import sys

import pytest

from pipelines import progress
from pipelines.config.paths import PROJECT

SCRIPT = """
from pipelines.progress import meter
with meter("training", 4, "steps") as shown:
    for _ in range(4):
        shown.advance(1, "loss 0.5")
"""


def test_plain_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.meter("training", 4, "steps") as shown:
        shown.begin_at(2)
        shown.advance(1, "loss 0.5")
    assert re.fullmatch(r"  training: 3/4 steps, \d+:\d\d left, loss 0\.5\n", capsys.readouterr().out)


def test_a_meter_that_went_on_counts_only_its_own_pace() -> None:
    shown = progress.Meter("training", 100, "steps")
    shown.begin_at(90)
    assert shown.pace() == 0.0
    assert shown.seconds_left() == 0.0
    shown.advance(1)
    assert shown.pace() > 0


def test_a_bar_on_a_terminal() -> None:
    parent, child = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=PROJECT, stderr=child, check=True, env={**os.environ, "COLUMNS": "100"}
    )
    os.close(child)
    shown = os.read(parent, 65536).decode()
    os.close(parent)
    assert "━" in shown
    assert "4/4" in shown
    assert "loss 0.5" in shown


def test_a_count_without_a_total(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.meter("reading", None, "records") as shown:
        shown.advance(7)
    assert capsys.readouterr().out == "  reading: 7 records\n"
