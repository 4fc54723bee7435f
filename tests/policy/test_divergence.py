"""TRL's divergence as a student of its equal and an independent reference see it, and the prompts of a teacher."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks import distillation_divergence as benchmark
from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Row
from pipelines.policy.on_policy import LikeLength, Told, with_system

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_divergence_is_that_of_the_reference() -> None:
    assert benchmark.largest_difference() < 1e-6


@pytest.mark.parametrize(
    ("beta", "wanted"),
    [
        # Two tokens: the student says (1/2, 1/2), the teacher (1/4, 3/4).
        (0.0, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        (1.0, 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        (
            0.5,  # the mean of the two is (3/8, 5/8)
            0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5))
            + 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)),
        ),
    ],
)
def test_the_reference_is_what_a_hand_computes(beta: float, wanted: float) -> None:
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert float(benchmark.reference(student, teacher, beta, 1.0)) == pytest.approx(wanted, abs=1e-6)


def test_a_student_learns_nothing_from_its_equal() -> None:
    loss, gradient = benchmark.itself()
    assert loss < 1e-6
    assert 0 < gradient < 1e-5


def row(number: int, *messages: tuple[str, str]) -> Row:
    prompt = [{"role": role, "content": text} for role, text in messages]
    return Row(str(number), "t", prompt, [], "", "", f"f:{number}", str(number))


def test_a_prompt_for_the_teacher_stands_before_a_system_message() -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert with_system(said, "Think.") == [{"role": "system", "content": "Think.\n\nBe brief."}, said[1]]
    assert with_system(said[1:], "Think.") == [{"role": "system", "content": "Think."}, said[1]]


def test_the_teacher_reads_its_own_prompt_before_the_same_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "data/models/tiny")
    rows = [row(0, ("user", "Why?")), row(1, ("system", "Be brief."), ("user", "When does it open again?"))]
    told = Told(tokenizer, {}, rows, "Think.")

    def written(messages: list[dict[str, str]]) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text)["input_ids"])

    short, long = (written(one.prompt) for one in rows)
    gap = len(long) - len(short)
    ids = torch.tensor([[0] * gap + short + [50, 2, 0], [*long, 60, 61, 2]])
    mask = torch.tensor([[0] * gap + [1] * len(short) + [1, 1, 0], [1] * len(long) + [1, 1, 1]])
    found, seen = told.exchanged(ids, mask, 3)
    wanted = [written(with_system(one.prompt, "Think.")) for one in rows]
    assert [line[kept.bool()].tolist() for line, kept in zip(found[:, :-3], seen[:, :-3], strict=True)] == wanted
    assert torch.equal(found[:, -3:], ids[:, -3:])
    assert torch.equal(seen[:, -3:], mask[:, -3:])
    # Padding is on the left: what is asked last stands right before the answer.
    assert seen[:, -4].tolist() == [1, 1]
    assert told.longest == max(map(len, wanted))


def test_rows_of_like_length_meet_and_each_epoch_has_its_own_order() -> None:
    lengths = [number % 10 for number in range(40)]
    sampler = LikeLength(lengths, 4, 2, 3)
    first = list(sampler)
    assert len(first) == len(sampler) == 80
    batches = [first[start : start + 4] for start in range(0, 80, 4)]
    assert batches[0::2] == batches[1::2]
    assert sorted(number for batch in batches[0::2] for number in batch) == list(range(40))
    assert all(len({lengths[number] for number in batch}) == 1 for batch in batches)
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    fresh = LikeLength(lengths, 4, 2, 3)
    fresh.set_epoch(1)
    assert list(fresh) == second
    assert list(LikeLength(lengths[:6], 4, 1, None)) == [0, 1, 2, 3]
