"""Evaluation's records: an answer that the verifier failed on is an error, and right or wrong is not said of it."""

from pathlib import Path

import pytest

from pipelines.config.compose import compose
from pipelines.evaluation.ask import Ask, Judged
from pipelines.evaluation.record import HELDOUT, Record
from pipelines.subjects.inquiry import judged_by
from pipelines.subjects.subject import Reply
from tests.tasks.math_cases import row_of

OWN = """
import os
from pipelines.tasks.verdict import Verdict

def verify(completion, row):
    if completion == "die":
        os._exit(3)
    return Verdict(completion == row.answer, completion)
"""


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str | None, Record]:
    """A right answer, a wrong one, one that ends the verifier, and a reply that is an error itself; by their texts."""
    (tmp_path / "dying_verifier.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = compose(["task=gsm8k", "task.verify=dying_verifier:verify", "task.decline_label=none"]).config
    row = row_of("18")
    texts = ["18", "17", "die", None]
    replies = [Reply(text=text, error="silent" if text is None else None) for text in texts]
    with judged_by(config) as verified:
        found = Judged(config.task, verified).records([Ask(HELDOUT, "", row.prompt, row)] * 4, "toy", replies)
    return {record.answer: record for record in found}


def test_what_has_a_verdict_is_right_or_wrong(records: dict[str | None, Record]) -> None:
    assert [(records[text].correct, records[text].parsed, records[text].error) for text in ("18", "17")] == [
        (True, "18", None),
        (False, "17", None),
    ]
    assert records["17"].declined is False


def test_what_has_none_is_an_error_and_in_no_rate(records: dict[str | None, Record]) -> None:
    failed = records["die"]
    assert (failed.correct, failed.parsed, failed.declined) == (None, None, None)
    assert failed.error == "verifier: died: exit code 3"
    assert (records[None].correct, records[None].error) == (None, "silent")


def test_where_nothing_judges_there_is_no_verdict() -> None:
    config = compose(["task=gsm8k", "task.verify=none"]).config
    row = row_of("18")
    with judged_by(config) as verified:
        assert verified is None
        (found,) = Judged(config.task, verified).records([Ask(HELDOUT, "", row.prompt, row)], "toy", [Reply(text="18")])
    assert (found.correct, found.error) == (None, None)
