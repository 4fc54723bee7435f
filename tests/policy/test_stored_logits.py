"""What is stored of a teacher: the likeliest tokens of the right places, small, found again, and the loss on them."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.policy import stored_logits
from pipelines.policy.imitation import encode_answers

pytestmark = pytest.mark.usefixtures("one_thread")
TOP_K = 5


@pytest.fixture(scope="module")
def teacher(small_model: Path) -> SimpleNamespace:
    model = AutoModelForCausalLM.from_pretrained(small_model).eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(8)  # a random model is sure of nothing
    return SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(small_model), template={})


def rows(count: int = 7) -> list[Row]:
    return [
        Row(
            id=str(number),
            task="t",
            prompt=[{"role": "user", "content": "word " * (number + 1)}],
            completion=[{"role": "assistant", "content": "an answer of some length"[: 6 + 3 * number]}],
            answer="",
            label="",
            source=f"f:{number}",
            group=str(number),
        )
        for number in range(count)
    ]


def store(
    teacher: Any, folder: Path, found: list[Row], batch: int = 4, told: list[int] | None = None
) -> dict[str, Any]:
    done: list[int] = [] if told is None else told
    return stored_logits.store(teacher, found, TOP_K, batch, folder, done.append)


def kept(teacher: Any, folder: Path, found: list[Row]) -> stored_logits.Stored:
    examples = encode_answers(teacher.tokenizer, found, {})
    return stored_logits.opened(folder, found, examples, teacher.tokenizer)


def test_each_trained_token_has_its_place_and_the_rest_is_all_others(teacher: Any, tmp_path: Path) -> None:
    told: list[int] = []
    about = store(teacher, tmp_path, rows(), told=told)
    assert sum(told) == 7
    found = kept(teacher, tmp_path, rows())
    tokens = 0
    for number, example in enumerate(encode_answers(teacher.tokenizer, rows(), {})):
        with torch.inference_mode():
            logits = teacher.model(torch.tensor([example.input_ids])).logits[0].double()
        # The distribution before a token says it; the last token, a line break, is trained as well.
        places = [at - 1 for at, label in enumerate(example.labels) if label != -100]
        logp = logits[places].log_softmax(-1)
        wanted = logp.topk(TOP_K, dim=-1)
        row = found.of(number)
        assert row["ids"].tolist() == wanted.indices.tolist()
        assert torch.allclose(row["logp"][:, :-1].double(), wanted.values, rtol=1e-3, atol=1e-3)
        rest = 1 - wanted.values.exp().sum(-1)
        assert torch.allclose(row["logp"][:, -1].double().exp(), rest, rtol=1e-2, atol=1e-4)
        tokens += len(places)
    assert about["tokens"] == tokens
    shard = load_file(tmp_path / "00000.safetensors")
    assert (shard["ids"].dtype, shard["logp"].dtype, shard["rest"].dtype) == (
        torch.uint16,
        torch.float16,
        torch.float16,
    )
    assert shard["ids"].shape == (tokens, TOP_K)


def test_a_batch_of_any_size_stores_the_same(teacher: Any, tmp_path: Path) -> None:
    for batch in (1, 7):
        store(teacher, tmp_path / str(batch), rows(), batch)
    one, all_of_them = (load_file(tmp_path / name / "00000.safetensors") for name in ("1", "7"))
    assert torch.equal(one["ids"].int(), all_of_them["ids"].int())
    assert torch.allclose(one["logp"].float(), all_of_them["logp"].float(), atol=2e-3)


def test_many_rows_are_in_shards_of_which_finished_ones_are_kept(
    teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(teacher, tmp_path / "whole", rows())
    monkeypatch.setattr(stored_logits, "ROWS_PER_SHARD", 3)
    store(teacher, tmp_path, rows())
    names = [f"0000{number}.safetensors" for number in range(3)]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == names
    parts = [kept(teacher, tmp_path, rows()).of(number) for number in range(7)]
    (tmp_path / names[1]).unlink()
    stamps = [(tmp_path / names[number]).stat().st_mtime_ns for number in (0, 2)]
    told: list[int] = []
    store(teacher, tmp_path, rows(), told=told)
    assert sum(told) == 7
    assert [(tmp_path / names[number]).stat().st_mtime_ns for number in (0, 2)] == stamps
    monkeypatch.undo()
    whole = kept(teacher, tmp_path / "whole", rows())
    for number, part in enumerate(parts):
        assert torch.equal(part["ids"], whole.of(number)["ids"])
        assert torch.allclose(part["logp"], whole.of(number)["logp"], atol=2e-3)


def test_too_many_tokens_a_place_are_refused(teacher: Any, tmp_path: Path) -> None:
    # 3072 * 4 / 100 = 122.88 bytes hold 30 tokens of 4 bytes and 2 for the rest.
    stored_logits.check_worth(30, 3072)
    with pytest.raises(UserError, match=r"generate.top_k: 31 tokens a place take more than 1/100 .* set at most 30"):
        stored_logits.check_worth(31, 3072)
    stored_logits.check_worth(999, 150_000)  # 6 bytes each
    with pytest.raises(UserError, match="set at most 999"):
        stored_logits.check_worth(1000, 150_000)


def test_what_was_stored_for_others_is_refused_by_name(teacher: Any, tmp_path: Path) -> None:
    store(teacher, tmp_path, rows())
    other = [replace(row, completion=[{"role": "assistant", "content": "another"}]) for row in rows()]
    with pytest.raises(UserError, match="of other rows than those beside it"):
        kept(teacher, tmp_path, other)
    tokenizer = AutoTokenizer.from_pretrained(teacher.tokenizer.name_or_path)
    tokenizer.add_tokens(["<one more>"])
    with pytest.raises(UserError, match=r"of another tokenizer than .* use distillation=cross_tokenizer"):
        kept(SimpleNamespace(model=None, tokenizer=tokenizer), tmp_path, rows())
    tokenizer = AutoTokenizer.from_pretrained(teacher.tokenizer.name_or_path)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|endoftext|>")
    with pytest.raises(UserError, match="other tokens than the student's chat template makes"):
        kept(SimpleNamespace(model=None, tokenizer=tokenizer), tmp_path, rows())
    with pytest.raises(UserError, match=r"stored.json: missing; .* generate.top_k"):
        kept(teacher, tmp_path / "nothing", rows())


def test_the_loss_is_that_of_tokens_and_the_rest_as_one_outcome() -> None:
    """By hand: the student's (1/2, 1/4, 1/8, 1/8) under (0.6, 0.3) of tokens 1 and 0, and 0.1 of the others."""
    student = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log() + 3.0
    logp = torch.tensor([[0.6, 0.3, 0.1]]).log()
    found = stored_logits.divergence(student, torch.tensor([[1, 0]]), logp)
    wanted = 0.6 * math.log(0.6 / 0.25) + 0.3 * math.log(0.3 / 0.5) + 0.1 * math.log(0.1 / 0.25)
    assert float(found) == pytest.approx(wanted, abs=1e-6)


def test_an_equal_student_has_nothing_to_learn(teacher: Any) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 100, requires_grad=True)
    logp = logits.detach().log_softmax(-1)
    best = logp.topk(TOP_K)
    rest = 1 - best.values.exp().sum(-1, keepdim=True)
    loss = stored_logits.divergence(logits, best.indices, torch.cat([best.values, rest.log()], dim=-1)).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-6
    # No mass at all beside the tokens is no reason for a loss that isn't a number.
    certain = torch.tensor([[0.0, stored_logits.NOTHING]])
    assert math.isfinite(float(stored_logits.divergence(logits[:1].detach(), torch.tensor([[3]]), certain)))
