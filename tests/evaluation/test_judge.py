"""The judge: both orders, strict replies, and a real endpoint that answers out of form for some rows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.config.block import EndpointFields
from pipelines.config.paths import PROJECT
from pipelines.dataset.row import Message
from pipelines.errors import UserError
from pipelines.evaluation import judge
from pipelines.evaluation.judge import Judgement, Pair, check_template, fill, letter, pairwise, summary
from pipelines.evaluation.record import Record
from pipelines.interval import wilson
from pipelines.subjects.endpoint import Endpoint
from pipelines.subjects.subject import Reply
from tests.subjects import serving
from tests.subjects.serving import Faulty

TEMPLATE = "Q={question} E={expected}\nA={a}\nB={b}"


def judged(first: str | None, second: str | None, candidate: str = "mine", other: str = "yours") -> Judgement:
    """What becomes of two replies of the judge."""
    replies = [Reply(text, error=None if text is not None else "gone") for text in (first, second)]
    (found,) = pairwise([Pair("1", "q", "e", candidate, other)], TEMPLATE, lambda conversations: replies)
    return found


@pytest.mark.parametrize(
    ("first", "second", "outcome", "agreed"),
    [
        ("A", "B", "win", True),
        ("B", "A", "loss", True),
        ("C", "C", "tie", True),
        ("A", "A", "tie", False),  # the first position wins both times
        ("B", "B", "tie", False),
        ("A", "C", "tie", False),
        ("C", "B", "tie", False),
        ("C", "A", "tie", False),
    ],
)
def test_a_win_is_one_in_both_orders(first: str, second: str, outcome: str, agreed: bool) -> None:
    found = judged(first, second)
    assert (found.outcome, found.agreed) == (outcome, agreed)
    assert (found.first, found.second, found.out_of_form, found.error) == (first, second, False, None)


def test_both_orders_are_asked_and_braces_survive() -> None:
    asked: list[list[Message]] = []

    def ask(conversations: list[list[Message]]) -> list[Reply]:
        asked.extend(conversations)
        return [Reply("C")] * len(conversations)

    pairs = [Pair("1", "f{a}", "{b}", '{"x": {a}}', "{question}"), Pair("2", "q", "", "m", "y")]
    pairwise(pairs, TEMPLATE + ' {"not": "ours"}', ask)
    assert [messages[0]["content"] for messages in asked] == [
        'Q=f{a} E={b}\nA={"x": {a}}\nB={question} {"not": "ours"}',
        'Q=f{a} E={b}\nA={question}\nB={"x": {a}} {"not": "ours"}',
        'Q=q E=(none is given)\nA=m\nB=y {"not": "ours"}',
        'Q=q E=(none is given)\nA=y\nB=m {"not": "ours"}',
    ]
    assert {messages[0]["role"] for messages in asked} == {"user"}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{question} {expected} {a}", "expected {question}, {expected}, {a}, {b}; {b} is missing"),
        ("{question} {expected} {a} {b} {c}", "expected {question}, {expected}, {a}, {b}, got {c}"),
        ("{question} {expekted} {a} {b}", "got {expekted}; nearest valid name: expected"),
        ("{ question } {expected} {a} {b}", "{question} is missing"),
    ],
)
def test_a_wrong_template_is_told_before_anybody_is_asked(template: str, message: str) -> None:
    def never(conversations: list[list[Message]]) -> list[Reply]:
        raise AssertionError("asked")

    with pytest.raises(UserError) as caught:
        pairwise([Pair("1", "q", "e", "mine", "yours")], template, never)
    assert str(caught.value).startswith("evaluate.judge.prompt: expected ")
    assert message in str(caught.value)


def test_the_shipped_templates_are_right() -> None:
    shipped = yaml.safe_load((PROJECT / "conf/evaluate.yaml").read_text(encoding="utf-8"))["judge"]
    check_template(shipped["prompt"], "prompt", judge.PLACEHOLDERS)
    assert "{a}" not in fill(shipped["prompt"], dict.fromkeys(judge.PLACEHOLDERS, "x"))


@pytest.mark.parametrize(
    "text", ["A", " A\n", "A.", "Answer: A", "answer:A", "**A**", "**A**.", "**A.**", "**Answer:** A", "Answer: **A**."]
)
def test_a_letter_alone_is_read(text: str) -> None:
    assert letter(text) == "A"
    assert letter(text.replace("A", "C").replace("Cnswer", "Answer")) == "C"


@pytest.mark.parametrize(
    "text", ["", "a", "D", "AB", "A or B", "A, since it is right", "Answer A is better", "**A", "[[A]]", "A\nB", "."]
)
def test_anything_else_is_out_of_form(text: str) -> None:
    assert letter(text) is None
    found = judged("A", text)
    assert (found.out_of_form, found.outcome, found.error) == (True, None, None)
    assert judged(text, "B").out_of_form


def test_equal_answers_are_a_tie_that_nobody_is_asked_about() -> None:
    (found,) = pairwise([Pair("1", "q", "e", "same", " same\n")], TEMPLATE, lambda conversations: 1 / 0)  # type: ignore[arg-type,return-value]
    assert found == Judgement("1", outcome="tie", agreed=True)


def test_errors_are_no_outcome() -> None:
    assert judged("A", None).error == "no answer of the judge: gone"
    assert judged(None, "nonsense").out_of_form is False
    pairs = [Pair("1", "q", "e", None, "yours"), Pair("2", "q", "e", "mine", None)]
    found = pairwise(pairs, TEMPLATE, lambda conversations: [])
    assert [one.error for one in found] == ["no answer of the candidate", "no answer of the other subject"]
    assert [one.outcome for one in found] == [None, None]


def many(**counts: int) -> list[Judgement]:
    kinds = {
        "win": Judgement("", "A", "B", "win", True),
        "loss": Judgement("", "B", "A", "loss", True),
        "split": Judgement("", "A", "A", "tie", False),
        "even": Judgement("", "C", "C", "tie", True),
        "equal": Judgement("", outcome="tie", agreed=True),
        "odd": Judgement("", "A", None, out_of_form=True),
        "failed": Judgement("", error="gone"),
    }
    found = [kinds[name] for name, count in counts.items() for _ in range(count)]
    return [Judgement(str(i), *[getattr(one, n) for n in Judgement.__slots__[1:]]) for i, one in enumerate(found)]


def test_the_summary_by_hand() -> None:
    found = summary(many(win=9, loss=3, split=3, even=1, equal=2, odd=5, failed=7), None, 4000, 1)
    assert (found.num_judged, found.num_wins, found.num_losses, found.num_ties) == (18, 9, 3, 6)
    assert (found.num_asked, found.num_out_of_form, found.num_errors) == (16, 5, 7)
    assert found.win_rate is not None
    assert found.win_rate.value == pytest.approx((9 + 6 / 2) / 18)
    assert found.decided_win_rate == wilson(9, 12)
    assert found.tie_rate == wilson(6, 18)
    assert found.order_dependent_rate == wilson(3, 16)
    # Replies preferring one: 18 of wins (half of them first), 6 of losses, 6 of splits (all first).
    assert found.first_position_rate is not None
    assert found.first_position_rate.value == pytest.approx((9 + 3 + 6) / 30)
    low, high = _bootstrapped([1.0] * 9 + [0.0] * 3 + [0.5] * 6)
    assert found.win_rate.low == pytest.approx(low, abs=0.05)
    assert found.win_rate.high == pytest.approx(high, abs=0.05)


def _bootstrapped(scores: list[float]) -> tuple[float, float]:
    """Percentiles of resampled means, row by row."""
    drawn = np.random.default_rng(5).choice(scores, size=(20_000, len(scores))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def test_rows_of_one_group_count_once() -> None:
    given = many(win=10, loss=10)
    alone = summary(given, None, 2000, 1).win_rate
    together = summary(given, ["a"] * 10 + ["b"] * 10, 2000, 1).win_rate
    assert alone is not None
    assert together is not None
    assert together.value == alone.value
    assert together.high - together.low > alone.high - alone.low


def test_without_an_outcome_there_is_no_rate() -> None:
    found = summary(many(odd=1, failed=2), None, 1000, 1)
    assert (found.win_rate, found.decided_win_rate, found.order_dependent_rate) == (None, None, None)
    names = {m.name: m.value for m in found.measures()}
    assert names == {"num_judged": 0, "num_out_of_form": 1, "num_errors": 2}
    only_equal = summary(many(equal=3), None, 1000, 1)
    assert (only_equal.decided_win_rate, only_equal.order_dependent_rate) == (None, None)


def test_every_measure_is_defined() -> None:
    measured = summary(many(win=2, loss=1, split=1), None, 1000, 1).measures("_vs_base")
    assert {m.name.removesuffix("_vs_base") for m in measured} == set(judge.DEFINITIONS)
    assert {m.suite for m in measured} == {"judge"}


def test_judgements_come_back_from_the_table() -> None:
    given = many(win=2, loss=1, split=2, equal=1, odd=1, failed=1)
    given.append(Judgement("x", "C", "B", "tie", False))
    back = [Judgement.from_values(one.row_id, one.values(), one.error) for one in given]
    assert back[-2] == Judgement("7", error="gone")
    assert back == given
    records = [record(one, "base") for one in given] + [record(given[0], "champion")]
    elsewhere = replace(record(given[0], "base"), suite="heldout")
    values = {m.name: m.value for m in judge.measures([elsewhere, *records])}
    assert values["win_rate_vs_base"] == pytest.approx((2 + 4 / 2) / 7)
    assert (values["num_out_of_form_vs_base"], values["num_errors_vs_base"]) == (1, 1)
    assert values["win_rate_vs_champion"] == 1.0
    assert judge.measures([]) == []


def record(one: Judgement, other: str) -> Record:
    texts: dict[str, Any] = dict.fromkeys(("label", "source", "kept", "prompt", "expected"), "")
    return Record(
        suite=judge.SUITE,
        subject="adapter",
        row_id=one.row_id,
        kind=other,
        group=one.row_id,
        in_scope=True,
        answer=None,
        parsed=None,
        correct=None,
        declined=None,
        error=one.error,
        finished=True,
        prompt_tokens=None,
        num_tokens=None,
        latency_s=None,
        cost=None,
        values=one.values(),
        **texts,
    )


@pytest.fixture(scope="module")
def faulty() -> Iterator[Faulty]:
    with serving.faulty() as server:
        yield server


def test_a_judge_at_an_endpoint_that_fails_for_some_rows(faulty: Faulty) -> None:
    fields: dict[str, Any] = {"at": faulty.at, "model": "judge", "api_key": None, "concurrency": 4, "timeout_s": 10.0}
    fields |= {"retries": 0, "price_in": None, "price_out": None, "spending_limit": None}
    endpoint = Endpoint(EndpointFields(**fields), "evaluate.judge", first_pause_s=0.01)
    questions = {
        "win": "<<prefer:good>>",
        "loss": "<<prefer:bad>>",
        "biased": "<<say:A>>",
        "odd": "<<say:I prefer A>>",
        "sometimes odd": "<<waver:good>>",
        "broken": "<<http:500>>",
        "garbled": "<<raw:<html>>>",
        "equal": "<<http:500>>",
    }
    pairs = [Pair(name, text, "e", "good", "good" if name == "equal" else "bad") for name, text in questions.items()]
    found = pairwise(pairs, TEMPLATE, endpoint.asker(judge.MAX_NEW_TOKENS))
    outcomes = {one.row_id: one.outcome for one in found}
    assert outcomes == {
        "win": "win",
        "loss": "loss",
        "biased": "tie",
        "odd": None,
        "sometimes odd": None,
        "broken": None,
        "garbled": None,
        "equal": "tie",
    }
    summed = summary(found, None, 1000, 1)
    assert (summed.num_judged, summed.num_out_of_form, summed.num_errors) == (4, 2, 2)
    assert len(faulty.seen()["bodies"]) == 1 + 2 * 7
