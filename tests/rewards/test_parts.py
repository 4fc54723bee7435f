"""The parts of a reward by hand, and the rule that shaping can't outweigh being right."""

import itertools
from collections.abc import Mapping

import pytest

from pipelines.config.compose import compose
from pipelines.config.schema import Rewards
from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.rewards.parts import Answer, length, repetition, values_of, weights_of
from pipelines.tasks.verdict import Verdict

ROW = Row("r", "t", [{"role": "user", "content": "Where is my card?"}], [], "here", "", "f:1", "g")


SHIPPED = compose([]).config.grpo.rewards.model_dump()


def rewards(**changed: Mapping[str, object]) -> Rewards:
    return Rewards.model_validate({name: part | dict(changed.get(name, {})) for name, part in SHIPPED.items()})


def test_length_is_the_soft_punishment_of_dapo() -> None:
    part = rewards(length={"soft_tokens": 4}).length
    values = [length(Answer("", tokens, True), 10, part) for tokens in (1, 6, 7, 8, 10)]
    assert values == [0.0, 0.0, -0.25, -0.5, -1.0]
    assert length(Answer("", 10, False), 3, part) == pytest.approx(-10 / 3)  # a limit under soft_tokens


def test_repetition_counts_ngrams_that_were_there_before() -> None:
    part = rewards(repetition={"ngram": 2}).repetition
    assert repetition("a b c d", part) == 0.0
    assert repetition("a b a b a b", part) == pytest.approx(-3 / 5)  # ab ba ab ba ab
    assert repetition("a", part) == repetition("", part) == 0.0


def test_only_parts_with_a_weight_count_and_each_is_clipped() -> None:
    found = rewards(format={"weight": 0.3}, repetition={"weight": 0.2, "low": -0.25, "ngram": 1})
    values = values_of(found, 32)
    assert list(values) == list(weights_of(found)) == ["correct", "format", "repetition"]
    answer = Answer("no no no no", 4, True)
    given = {name: value(answer, ROW, Verdict(False, "no")) for name, value in values.items()}
    assert given == {"correct": 0.0, "format": 1.0, "repetition": -0.25}
    assert values["format"](answer, ROW, Verdict(False, None)) == 0.0


def test_language_is_the_prompts_unless_it_is_named() -> None:
    french = Answer("Où se trouve ma carte bancaire, je vous prie ? Elle n'est jamais arrivée.", 20, True)
    english = Answer("Where on earth is the card that I ordered from you three weeks ago?", 20, True)
    by_prompt = values_of(rewards(language={"weight": 0.5}), 32)["language"]
    assert by_prompt(english, ROW, Verdict(True, "")) > 0.9 > 0.1 > by_prompt(french, ROW, Verdict(True, ""))
    named = values_of(rewards(language={"weight": 0.5, "language": "fr"}), 32)["language"]
    assert named(french, ROW, Verdict(True, "")) > 0.9
    assert named(Answer("42", 1, True), ROW, Verdict(True, "42")) == 1.0


@pytest.mark.parametrize(
    "overrides",
    [
        ["format.weight=1.0"],
        ["format.weight=0.5", "length.weight=0.5"],
        ["format.weight=0.2", "format.high=6.0"],
        ["correct.weight=0.3", "length.weight=0.3"],
    ],
)
def test_shaping_that_could_outweigh_being_right_is_refused(overrides: list[str]) -> None:
    with pytest.raises(UserError, match="a wrong answer could be worth as much as a right one"):
        compose([f"grpo.rewards.{o}" for o in overrides])


def test_what_is_allowed_ranks_every_right_answer_over_every_wrong_one() -> None:
    weighed = {"format": 0.3, "length": 0.3, "repetition": 0.2, "language": 0.19}
    found = rewards(**{name: {"weight": weight} for name, weight in weighed.items()})
    weights = weights_of(found)
    ends = [(part.low, part.high) for part in found.shaping.values()]
    shaped = [
        sum(weight * value for weight, value in zip(list(weights.values())[1:], corner, strict=True))
        for corner in itertools.product(*ends)
    ]
    assert weights["correct"] + min(shaped) > max(shaped)
