"""How far an answer rests on the passages that it was given, and the passages on what was asked.

Claims are sentences. First all (claim, passage) pairs that any row needs are put to a judge, or compared by their
words; then each row is measured from what was found.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.dataset.row import Message
from pipelines.evaluation.judge import Ask, alone, check_template, fill
from pipelines.evaluation.overlap import overlap
from pipelines.evaluation.sentences import Sentence, sentences

Claim = tuple[str, str]  # a claim and a passage
FIELD = "evaluate.judge.claims_prompt"
PLACEHOLDERS = ("passage", "claim")
MAX_NEW_TOKENS = 8
JUDGE, OVERLAP = "judge", "overlap"

DEFINITIONS: dict[str, str] = {
    "supported_claim_share": "Share of the answer's sentences that at least one of its passages supports "
    "(faithfulness of Es et al., RAGAS, 2023, with sentences for statements).",
    "context_precision": "Share of the passages that support at least one sentence of the expected answer, whatever "
    "their order.",
    "context_precision_ranked": "The same with passages counted by rank, as the RAGAS library's context precision: "
    "the mean, over the passages that support a sentence of the expected answer, of the share of such passages up to "
    "there; 0 where none does.",
    "context_recall": "Share of the expected answer's sentences that at least one passage supports (as the RAGAS "
    "library's context recall).",
    "citation_correctness": "Share of the citations, [n] in the answer, whose n-th passage is there and supports the "
    "sentence that cites it (after the citation precision of Gao et al., EMNLP 2023).",
}
METHODS: dict[str, str] = {
    JUDGE: "A passage supports a sentence where the judge says yes; pairs with another reply than yes or no are "
    "counted and left out.",
    OVERLAP: "A fallback, as no judge is asked: a passage supports a sentence where it holds enough of its content "
    "words, all its numbers, and is negated as it is. It knows no meaning.",
}


@dataclass(frozen=True)
class Support:
    """Whether passages support claims, how that was found, and how many pairs the judge left open and why.

    `verdicts` holds None where it isn't known.
    """

    verdicts: Mapping[Claim, bool | None]
    method: str
    num_out_of_form: int = 0
    num_errors: int = 0


def pairs_needed(answer: str, gold: str | None, passages: Sequence[str]) -> list[Claim]:
    """The (claim, passage) pairs that `measure` looks up for a row, each once."""
    claims = [*sentences(answer), *sentences(gold or "")]
    return list(dict.fromkeys((claim.text, passage) for claim in claims for passage in passages))


def by_judge(pairs: Iterable[Claim], template: str, ask: Ask) -> Support:
    """What a language model says of each pair; it is asked once, for all pairs.

    Raises UserError where the template isn't one.
    """
    check_template(template, FIELD, PLACEHOLDERS)
    wanted = list(dict.fromkeys(pairs))
    conversations: list[list[Message]] = [
        [{"role": "user", "content": fill(template, {"claim": claim, "passage": passage})}] for claim, passage in wanted
    ]
    replies = ask(conversations) if conversations else []
    said = [None if reply.text is None else yes_or_no(reply.text) for reply in replies]
    num_errors = sum(reply.text is None for reply in replies)
    return Support(dict(zip(wanted, said, strict=True)), JUDGE, said.count(None) - num_errors, num_errors)


def by_overlap(pairs: Iterable[Claim], threshold: float) -> Support:
    """What the words alone say of each pair: a fallback that knows no meaning (see `overlap`)."""
    verdicts = {(claim, passage): overlap(claim, passage, threshold) for claim, passage in pairs}
    return Support(verdicts, OVERLAP)


def yes_or_no(text: str) -> bool | None:
    """True or False where the reply is yes or no alone, as `judge.alone` takes it; None for anything else."""
    return {"yes": True, "no": False}.get(alone(text).casefold())


def measure(
    answer: str, gold: str | None, passages: Sequence[str], supported: Mapping[Claim, bool | None]
) -> dict[str, float]:
    """The metrics of `DEFINITIONS` that the row has; all are shares of 1.

    Verdicts that aren't known count for nothing. A metric is left out where nothing of it is known, or there is
    nothing to measure: no sentence, no passage to support it, no expected answer, no citation. Raises KeyError for a
    pair that `pairs_needed` names and `supported` lacks.
    """
    said, expected = sentences(answer), sentences(gold or "")
    of_answer = _table(said, passages, supported)
    of_expected = _table(expected, passages, supported)
    useful = [_any(column) for column in zip(*of_expected, strict=True)]
    found = {
        "supported_claim_share": _share([_any(row) for row in of_answer]),
        "context_precision": _share(useful),
        "context_precision_ranked": _ranked(useful),
        "context_recall": _share([_any(row) for row in of_expected]),
        "citation_correctness": _citations(said, passages, supported),
    }
    return {name: value for name, value in found.items() if value is not None}


def _table(
    claims: Sequence[Sentence], passages: Sequence[str], supported: Mapping[Claim, bool | None]
) -> list[list[bool | None]]:
    """A row a claim, a column a passage; no row where there is no passage."""
    return [[supported[claim.text, passage] for passage in passages] for claim in claims if passages]


def _citations(
    said: Sequence[Sentence], passages: Sequence[str], supported: Mapping[Claim, bool | None]
) -> float | None:
    cited = [(claim.text, number) for claim in said for number in claim.cites]
    return _share([0 < number <= len(passages) and supported[text, passages[number - 1]] for text, number in cited])


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    """True where one is; where none is, one that isn't known leaves it open."""
    given = list(verdicts)
    return True if True in given else None if None in given else False


def _share(verdicts: Iterable[bool | None]) -> float | None:
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else None


def _ranked(verdicts: Iterable[bool | None]) -> float | None:
    """The mean precision at each rank where a verdict is true; 0 where none is, None where none is known."""
    known = [verdict for verdict in verdicts if verdict is not None]
    at_true = [sum(known[:rank]) / rank for rank, verdict in enumerate(known, 1) if verdict]
    return sum(at_true) / max(len(at_true), 1) if known else None
