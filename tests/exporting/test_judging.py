"""How a form stands to the adapter, from records alone; and prompts that llama.cpp cuts otherwise."""

from dataclasses import replace

import pytest
import torch

from pipelines.config.compose import compose
from pipelines.errors import UserError
from pipelines.evaluation.record import HELDOUT, Record
from pipelines.exporting import identity, table
from pipelines.exporting.answering import _cut_otherwise
from pipelines.exporting.judging import Answered, standing

FILES = {"form": "gguf", "size": 2_500_000, "digest": "d"}


def record(number: int, answer: str | None, correct: bool | None, in_scope: bool = True) -> Record:
    return Record(
        HELDOUT, "x", str(number), "", str(number), "a", "", "{}", "[]", "a", in_scope, answer, answer, correct, False,
        None, True, 3, 2, None, None,
    )  # fmt: skip


ADAPTER = [record(n, "a", True) for n in range(8)] + [record(8, "b", False), record(9, "none", True, in_scope=False)]


def test_the_loss_is_on_the_same_in_scope_rows() -> None:
    worse = [replace(r, answer="b", correct=False) if r.row_id in ("0", "1") else r for r in ADAPTER]
    found = standing(compose([]).config, Answered(worse, 10.0), Answered(ADAPTER, 5.0), FILES)
    assert found.rows == 9
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(6 / 9)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(-2 / 9)
    assert found.difference.low < -2 / 9 < found.difference.high
    assert found.same == 0.8
    tag = found.tag("of the rows")
    assert (tag["low"], tag["high"]) == (found.difference.low, found.difference.high)
    assert (tag["heldout"], tag["rows"], tag["size"], tag["digest"]) == ("of the rows", 9, 2_500_000, "d")


def test_a_row_without_a_verdict_is_in_no_rate() -> None:
    unread = [replace(r, answer=None, correct=None) if r.row_id == "0" else r for r in ADAPTER]
    found = standing(compose([]).config, Answered(unread, 1.0), Answered(ADAPTER, 1.0), FILES)
    assert found.rows == 8
    assert found.difference is not None
    assert found.difference.value == 0


def test_without_a_verify_the_answers_alone_are_compared() -> None:
    unjudged = [replace(r, correct=None) for r in ADAPTER]
    found = standing(compose([]).config, Answered(unjudged, 1.0), Answered(unjudged, 1.0), FILES)
    assert (found.accuracy, found.difference, found.same, found.rows) == (None, None, 1.0, 10)
    assert table.lines([found])[1].split() == ["gguf", "2.5", "MB", "-", "-", "100.0%", "1"]


def test_other_tokens_of_a_prompt_are_refused_unless_its_text_is_not_in_nfc() -> None:
    same, other = {"ids": None}, {"ids": [1, 2]}
    assert not _cut_otherwise("gguf", "caf\u00e9", same, [1])
    assert _cut_otherwise("gguf", "cafe\u0301", other, [1])
    with pytest.raises(UserError, match="other tokens"):
        _cut_otherwise("gguf", "caf\u00e9", other, [1])


class Counting(torch.nn.Module):
    """Prefers the token after the last one, by 2 over token 0 and by more over all others."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor) -> object:
        logits = torch.full((1, input_ids.shape[1], 10), -5.0)
        logits[0, -1, 0] = 1.0
        logits[0, -1, int(input_ids[0, -1]) + 1] = 3.0
        return type("Output", (), {"logits": logits})


def test_where_tokens_part_the_margin_is_told() -> None:
    expected, found = [[3, 4, 5], [3, 4, 5], [3, 4]], [[3, 4, 5], [3, 0], [3]]
    told = identity.compared(Counting(), [[1, 2]] * 3, expected, found)
    assert (told["rows"], told["equal"]) == (3, 1)
    assert told["first"][0] == {"row": 1, "token": 1, "margin": 2.0, "top2": 2.0}
    assert told["first"][1] == {"row": 2, "token": 1, "margin": None, "top2": None}
