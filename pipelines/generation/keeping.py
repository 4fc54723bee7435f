"""Which tries become rows: rejection sampling, a judge's opinion, and no answer twice.

Method: Yuan et al. 2023, "Scaling Relationship on Learning Mathematical Reasoning with Large Language Models",
section 3.3 (arXiv:2308.01825): samples that are right, the distinct ones of each question.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.config.teaching import Keep
from pipelines.dataset.normal import normalised
from pipelines.dataset.row import Row, question
from pipelines.dataset.shingles import jaccard_of
from pipelines.environments.calls import OPEN
from pipelines.generation.attempt import Attempt, spoken
from pipelines.generation.opinion import NO, SILENT, UNREAD, Opinion
from pipelines.verification import Verification

KEPT = "kept"
UNASKED = "unasked"
ERROR, EMPTY, UNFINISHED, MALFORMED = "error", "empty", "unfinished", "malformed"
UNJUDGED, WRONG, WRONG_STATE = "no verdict", "wrong", "wrong state"
JUDGED_BAD, JUDGE_UNREAD, JUDGE_SILENT = "judge says no", "judge unread", "judge silent"
DUPLICATE, SIMILAR, MORE = "duplicate", "similar", "over per_row"
# In the order in which they are looked for.
REASONS: dict[str, str] = {
    UNASKED: "The spending limit was reached before.",
    ERROR: "No answer: the endpoint refused, or its reply was no chat completion.",
    EMPTY: "Nothing but white space.",
    UNFINISHED: "Cut off at generate.max_new_tokens, or an episode that still made calls in its last turn.",
    MALFORMED: "A call of a tool that isn't JSON with a name, one where no tool is offered, an open <think>, or a mark "
    "of a chat template.",
    UNJUDGED: "The verifier failed, which says nothing of the answer.",
    WRONG: "The task's verify says no.",
    WRONG_STATE: "The calls lead to another state than the one that is right.",
    DUPLICATE: "The same answer to the same prompt was kept before.",
    JUDGED_BAD: "The judge says no.",
    JUDGE_UNREAD: "The judge said neither yes nor no alone.",
    JUDGE_SILENT: "The judge gave no answer.",
    SIMILAR: "Shares more than generate.keep.similarity of its words with an answer to the row that is kept.",
    MORE: "The row has generate.keep.per_row answers already.",
}
_OPINIONS = {NO: JUDGED_BAD, UNREAD: JUDGE_UNREAD, SILENT: JUDGE_SILENT}
_MARK = re.compile(r"<\|[A-Za-z0-9_]+\|>")

Ask = Callable[[Sequence[tuple[str, str]]], list[Opinion]]


@dataclass(frozen=True, slots=True)
class Sifted:
    """A try and what becomes of it: KEPT or one of REASONS; `verdict` and `judge` where they were asked."""

    attempt: Attempt
    reason: str
    detail: str = ""
    verdict: bool | None = None
    judge: str | None = None


def sift(
    attempts: Sequence[Attempt],
    rows: Mapping[str, Row],
    keep: Keep,
    verified: Verification | None,
    judge: Ask | None,
) -> list[Sifted]:
    """What becomes of each try, in their order; those of a row stand together.

    `verified` None takes every answer in form, `judge` None asks none. Raises UserError as verifiers and judges do.
    """
    found = [Sifted(one, *form(one, rows[one.row])) for one in attempts]
    if verified is not None:
        found = _verified(found, rows, verified)
    found = _distinct(found, rows)
    if judge is not None:
        found = _judged(found, rows, judge)
    return _few(found, rows, keep)


def form(attempt: Attempt, row: Row) -> tuple[str, str]:
    """(KEPT, "") for an answer in form, else the reason and what it says of itself."""
    if attempt.unasked or attempt.text is None:
        return (UNASKED if attempt.unasked else ERROR), str(attempt.error)
    messages = attempt.completion(row)
    said = [message for message in messages if message["role"] == "assistant"]
    if not any(str(message.get("content") or "").strip() or message.get("tool_calls") for message in said):
        return EMPTY, ""
    if not attempt.finished:
        return UNFINISHED, ""
    if detail := next(filter(None, (_malformed(str(message.get("content") or "")) for message in said)), None):
        return MALFORMED, detail
    return KEPT, ""


def _malformed(text: str) -> str | None:
    if OPEN in text:
        return f"{OPEN} in the text"
    if "<think>" in text and "</think>" not in text:
        return "<think> without an end"
    found = _MARK.search(text)
    return f"{found.group()} in the text" if found else None


def _verified(found: list[Sifted], rows: Mapping[str, Row], verified: Verification) -> list[Sifted]:
    asked = [place for place, one in enumerate(found) if one.reason == KEPT]
    texts = [str(found[place].attempt.text) for place in asked]
    outcomes = verified.check(texts, [rows[found[place].attempt.row] for place in asked]) if asked else []
    for place, outcome in zip(asked, outcomes, strict=True):
        attempt = found[place].attempt
        if outcome.verdict is None:
            found[place] = Sifted(attempt, UNJUDGED, str(outcome.failure))
        elif outcome.verdict.correct:
            found[place] = Sifted(attempt, KEPT, verdict=True)
        else:
            wrong = WRONG_STATE if attempt.played else WRONG
            found[place] = Sifted(attempt, wrong, outcome.verdict.parsed or "", verdict=False)
    return found


def _distinct(found: list[Sifted], rows: Mapping[str, Row]) -> list[Sifted]:
    """One of each answer to a prompt; rows may share a prompt."""
    seen: set[str] = set()
    made = []
    for one in found:
        row = rows[one.attempt.row]
        key = json.dumps([row.prompt, one.attempt.completion(row)], sort_keys=True) if one.reason == KEPT else ""
        made.append(Sifted(one.attempt, DUPLICATE, "", one.verdict) if key and key in seen else one)
        seen.add(key)
    return made


def _judged(found: list[Sifted], rows: Mapping[str, Row], judge: Ask) -> list[Sifted]:
    asked = [place for place, one in enumerate(found) if one.reason == KEPT]
    pairs = []
    for place in asked:
        row = rows[found[place].attempt.row]
        pairs.append((question(row.prompt), spoken(found[place].attempt.completion(row))))
    for place, opinion in zip(asked, judge(pairs) if asked else [], strict=True):
        one = found[place]
        reason = _OPINIONS.get(opinion.said, KEPT)
        detail = "" if reason == KEPT else opinion.reply
        found[place] = Sifted(one.attempt, reason, detail, one.verdict, opinion.said)
    return found


def _few(found: list[Sifted], rows: Mapping[str, Row], keep: Keep) -> list[Sifted]:
    """At most `per_row` of each row, no two of them alike; the earlier try stays."""
    counts: Counter[str] = Counter()
    words: dict[str, list[frozenset[str]]] = {}
    made = []
    for one in found:
        if one.reason != KEPT:
            made.append(one)
            continue
        row = rows[one.attempt.row]
        own = frozenset(normalised(spoken(one.attempt.completion(row))).split())
        kept = words.setdefault(row.id, [])
        alike = max((jaccard_of(own, other) for other in kept), default=0.0)
        if keep.similarity is not None and alike > keep.similarity:
            made.append(Sifted(one.attempt, SIMILAR, f"{alike:.2f}", one.verdict, one.judge))
        elif counts[row.id] == keep.per_row:
            made.append(Sifted(one.attempt, MORE, "", one.verdict, one.judge))
        else:
            counts[row.id] += 1
            kept.append(own)
            made.append(one)
    return made
