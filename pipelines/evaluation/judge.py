"""A language model compares two subjects' answers, both ways round.

Method: L. Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", NeurIPS 2023: pairwise comparison,
and section 3.4 against position bias: a win counts only where both orders say so.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.config.nearest import did_you_mean
from pipelines.dataset.row import Message
from pipelines.errors import UserError
from pipelines.evaluation.measure import Measure, plain
from pipelines.evaluation.record import Record
from pipelines.interval import Interval, bootstrap_mean, rate
from pipelines.subjects.subject import Reply

Ask = Callable[[list[list[Message]]], list[Reply]]
Verdict = Literal["A", "B", "C"]
Outcome = Literal["win", "loss", "tie"]

SUITE = "judge"
FIELD = "evaluate.judge.prompt"
PLACEHOLDERS = ("question", "expected", "a", "b")
NONE_GIVEN = "(none is given)"
MAX_NEW_TOKENS = 16

DEFINITIONS: dict[str, str] = {
    "win_rate": "Share of the judged rows that the judge prefers the candidate's answer in, ties counted as half. "
    "Each row is judged in both orders; a win is one in both, and where the orders disagree it is a tie (Zheng et "
    "al. 2023, section 3.4). Its interval is a bootstrap's.",
    "decided_win_rate": "Share of the wins among the judged rows that are no ties.",
    "tie_rate": "Share of the judged rows that are ties: equal answers, which nobody is asked about, answers called "
    "equally good, and orders that disagree.",
    "order_dependent_rate": "Share of the rows that were asked about in which the two orders disagree. Less is better.",
    "first_position_rate": "Share of the replies preferring one of two answers that prefer the first. 0.5 is a judge "
    "without position bias.",
    "num_judged": "Rows with an outcome.",
    "num_out_of_form": "Rows left out because a reply of the judge was not A, B or C alone.",
    "num_errors": "Rows left out because a subject or the judge gave no answer.",
}

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_ANSWER = re.compile(r"(?:answer: *)?", re.IGNORECASE)
_SCORES: dict[Outcome, float] = {"win": 1.0, "loss": 0.0, "tie": 0.5}
_CODES: dict[Verdict, float] = {"A": 1.0, "B": 0.0, "C": 0.5}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one row: `candidate`'s and `other`'s, None where a subject gave none; `expected` may be ""."""

    row_id: str
    question: str
    expected: str
    candidate: str | None
    other: str | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judge says of one row, as seen by the candidate.

    `first` is the verdict with the candidate's answer as A, `second` with it as B; None where nobody was asked, or
    the reply was none. `outcome` is None where a reply was out of form or there is an `error`. Equal answers are a
    tie that agrees, without verdicts.
    """

    row_id: str
    first: Verdict | None = None
    second: Verdict | None = None
    outcome: Outcome | None = None
    agreed: bool | None = None
    out_of_form: bool = False
    error: str | None = None

    def values(self) -> dict[str, float]:
        """All of it but `row_id` and `error` as numbers, from which `from_values` has it back."""
        found = {"first": self.first, "second": self.second}
        coded = {name: _CODES[verdict] for name, verdict in found.items() if verdict is not None}
        if self.out_of_form:
            return coded | {"out_of_form": 1.0}
        return coded if self.outcome is None else coded | {"score": _SCORES[self.outcome]}

    @classmethod
    def from_values(cls, row_id: str, values: Mapping[str, float], error: str | None) -> "Judgement":
        if error is not None:
            return cls(row_id, error=error)
        names = {code: verdict for verdict, code in _CODES.items()}
        first, second = (names[values[n]] if n in values else None for n in ("first", "second"))
        if "out_of_form" in values:
            return cls(row_id, first, second, out_of_form=True)
        return _equal(row_id) if first is None or second is None else _decided(row_id, first, second)


@dataclass(frozen=True)
class Summary:
    """The judgements of one pair of subjects, counted; rates are None without rows."""

    num_wins: int
    num_losses: int
    num_ties: int
    num_asked: int
    num_out_of_form: int
    num_errors: int
    win_rate: Interval | None
    decided_win_rate: Interval | None
    tie_rate: Interval | None
    order_dependent_rate: Interval | None
    first_position_rate: Interval | None

    @property
    def num_judged(self) -> int:
        return self.num_wins + self.num_losses + self.num_ties

    def measures(self, ending: str = "") -> list[Measure]:
        """As measures of the suite, `ending` behind each name."""
        judged, asked = (self.num_judged, "judged"), (self.num_asked, "asked about in both orders")
        rates: dict[str, tuple[Interval | None, int, str]] = {
            "win_rate": (self.win_rate, *judged),
            "decided_win_rate": (self.decided_win_rate, self.num_wins + self.num_losses, "judged, no tie"),
            "tie_rate": (self.tie_rate, *judged),
            "order_dependent_rate": (self.order_dependent_rate, *asked),
            "first_position_rate": (self.first_position_rate, *asked),
        }
        found = [
            Measure(SUITE, name + ending, rate.value, rate.low, rate.high, count, of)
            for name, (rate, count, of) in rates.items()
            if rate is not None
        ]
        total = self.num_judged + self.num_out_of_form + self.num_errors
        for name in ("num_judged", "num_out_of_form", "num_errors"):
            found.append(plain(SUITE, name + ending, getattr(self, name), total, "sampled", "count"))
        return found


def pairwise(pairs: Sequence[Pair], template: str, ask: Ask) -> list[Judgement]:
    """A judgement for each pair, in their order; the judge is asked once, for all rows and both orders.

    Raises UserError where the template isn't one.
    """
    check_template(template, FIELD, PLACEHOLDERS)
    found: dict[int, Judgement] = {}
    asked: list[int] = []
    conversations: list[list[Message]] = []
    for position, pair in enumerate(pairs):
        if pair.candidate is None or pair.other is None:
            who = "candidate" if pair.candidate is None else "other subject"
            found[position] = Judgement(pair.row_id, error=f"no answer of the {who}")
        elif pair.candidate.strip() == pair.other.strip():
            found[position] = _equal(pair.row_id)
        else:
            asked.append(position)
            for a, b in ((pair.candidate, pair.other), (pair.other, pair.candidate)):
                values = {"question": pair.question, "expected": pair.expected or NONE_GIVEN, "a": a, "b": b}
                conversations.append([{"role": "user", "content": fill(template, values)}])
    replies = ask(conversations) if conversations else []
    for position, first, second in zip(asked, replies[::2], replies[1::2], strict=True):
        found[position] = _judged(pairs[position].row_id, first, second)
    return [found[position] for position in range(len(pairs))]


def _judged(row_id: str, first: Reply, second: Reply) -> Judgement:
    for reply in (first, second):
        if reply.text is None:
            return Judgement(row_id, error=f"no answer of the judge: {reply.error}")
    a, b = letter(str(first.text)), letter(str(second.text))
    if a is None or b is None:
        return Judgement(row_id, a, b, out_of_form=True)
    return _decided(row_id, a, b)


def _decided(row_id: str, first: Verdict, second: Verdict) -> Judgement:
    named: dict[Verdict, Outcome] = {"A": "win", "B": "loss", "C": "tie"}
    swapped: dict[Verdict, Outcome] = {"A": "loss", "B": "win", "C": "tie"}
    agreed = named[first] == swapped[second]
    return Judgement(row_id, first, second, named[first] if agreed else "tie", agreed)


def _equal(row_id: str) -> Judgement:
    return Judgement(row_id, outcome="tie", agreed=True)


def letter(text: str) -> Verdict | None:
    """A, B or C where the reply is that alone; space around, bold, a period and "Answer:" before don't count."""
    verdicts: tuple[Verdict, ...] = ("A", "B", "C")
    said = alone(text)
    return next((verdict for verdict in verdicts if verdict == said), None)


def alone(text: str) -> str:
    """A reply without what models put around a single word: space, bold, "Answer:" before, a period behind."""
    bare = _BOLD.sub(r"\1", text.strip()).strip()
    return _ANSWER.sub("", bare, count=1).removesuffix(".").strip()


def summary(judgements: Sequence[Judgement], groups: Sequence[str] | None, resamples: int, seed: int) -> Summary:
    """Counts and rates; intervals are over rows, or over groups where `groups` names each judgement's."""
    told = [one.row_id for one in judgements] if groups is None else groups
    pairs = list(zip(judgements, told, strict=True))
    judged = [(one.outcome, group) for one, group in pairs if one.outcome is not None]
    asked = [(one, group) for one, group in pairs if one.outcome is not None and one.first is not None]
    replies = [(verdict, group) for one, group in asked for verdict in (one.first, one.second)]

    def share(of: Sequence[tuple[bool, str]]) -> Interval | None:
        return rate([yes for yes, _ in of], [group for _, group in of], resamples, seed) if of else None

    return Summary(
        num_wins=sum(outcome == "win" for outcome, _ in judged),
        num_losses=sum(outcome == "loss" for outcome, _ in judged),
        num_ties=sum(outcome == "tie" for outcome, _ in judged),
        num_asked=len(asked),
        num_out_of_form=sum(one.out_of_form for one in judgements),
        num_errors=sum(one.error is not None for one in judgements),
        win_rate=_win_rate(judged, resamples, seed),
        decided_win_rate=share([(outcome == "win", group) for outcome, group in judged if outcome != "tie"]),
        tie_rate=share([(outcome == "tie", group) for outcome, group in judged]),
        order_dependent_rate=share([(not one.agreed, group) for one, group in asked]),
        first_position_rate=share([(verdict == "A", group) for verdict, group in replies if verdict != "C"]),
    )


def _win_rate(judged: Sequence[tuple[Outcome, str]], resamples: int, seed: int) -> Interval | None:
    if not judged:
        return None
    scores = [_SCORES[outcome] for outcome, _ in judged]
    return bootstrap_mean(scores, [group for _, group in judged], resamples, seed, (0.0, 1.0))


def measures(records: Iterable[Record], resamples: int = 10_000, seed: int = 0) -> list[Measure]:
    """The summaries of records of the suite, whose `kind` names the other subject; none without any.

    Such a record's `values` and `error` are a judgement's.
    """
    by_other: dict[str, list[Record]] = {}
    for record in records:
        if record.suite == SUITE:
            by_other.setdefault(record.kind, []).append(record)
    found: list[Measure] = []
    for other, given in sorted(by_other.items()):
        judgements = [Judgement.from_values(one.row_id, one.values, one.error) for one in given]
        groups = [one.group for one in given]
        found += summary(judgements, groups, resamples, seed).measures(f"_vs_{other}")
    return found


def check_template(template: str, field: str, placeholders: Sequence[str]) -> None:
    """Raises UserError naming `field` unless the template holds each placeholder, and no other `{name}`."""
    held = _PLACEHOLDER.findall(template)
    wanted = ", ".join(f"{{{name}}}" for name in placeholders)
    for name in held:
        if name not in placeholders:
            raise UserError(f"{field}: expected {wanted}, got {{{name}}}{did_you_mean(name, placeholders)}")
    for name in placeholders:
        if name not in held:
            raise UserError(f"{field}: expected {wanted}; {{{name}}} is missing")


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders filled; braces in the values, and other braces, stay as they are."""
    return _PLACEHOLDER.sub(lambda found: values[found.group(1)], template)
