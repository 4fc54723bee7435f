"""How near a free answer comes to reference answers: shares of words and of letters."""

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pipelines.dataset.row import Row, text_of
from pipelines.errors import UserError

Score = Callable[[str, Sequence[str]], float]

DEFINITIONS: dict[str, str] = {
    "token_f1": "F1 of the answer's words against the reference's, each word as often as it occurs, without case, "
    "punctuation and the articles a, an and the (SQuAD: Rajpurkar et al. 2016, section 6.1); the best over the row's "
    "accepted answers, and the mean over rows.",
    "rouge_l": "F1 of the longest common subsequence of words, in lower case (ROUGE-L: Lin 2004, as rouge-score "
    "computes it, without stemming; letters and digits of any script make words); the best over the row's accepted "
    "answers, and the mean over rows.",
    "chrf": "F-score of letter n-grams up to six letters long, recall counting twice, without white space (chrF2: "
    "Popovic 2015, as sacrebleu computes it for each row); the best over the row's accepted answers, and the mean over "
    "rows.",
}

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
_WORD = re.compile(r"[^\W_]+")


def token_f1(answer: str, references: Sequence[str]) -> float:
    """The best over the references, 0..1. Where one side has no word left, 1 if neither has and else 0.

    Method: P. Rajpurkar et al., "SQuAD: 100,000+ questions for machine comprehension of text", EMNLP 2016.
    """
    return max(_token_f1(_words(answer), _words(reference)) for reference in references)


def _token_f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """The best over the references, 0..1; 0 where either side has no word. Raises UserError without rouge-score.

    Method: C.-Y. Lin, "ROUGE: a package for automatic evaluation of summaries", 2004, section 3.1.
    """
    scorer = _rouge()
    return max(float(scorer.score(reference, answer)["rougeL"].fmeasure) for reference in references)


def chrf(answer: str, references: Sequence[str]) -> float:
    """The best over the references, 0..1. Raises UserError without sacrebleu.

    Method: M. Popovic, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015; n-grams that a text
    is too short for don't count.
    """
    return float(_chrf().sentence_score(answer, list(references)).score) / 100


def references(row: Row) -> list[str]:
    """What the row's answer is compared with: the completion's last text, or else the answer, and all accepted ones.

    Empty where the row has none of these.
    """
    said = text_of(row.completion[-1]) if row.completion else ""
    return [text for text in dict.fromkeys([said or row.answer, *(row.accepted or [])]) if text.strip()]


def needs(rows: Sequence[Row]) -> str | None:
    """Why no row can be compared with a reference; None where one can."""
    return None if any(references(row) for row in rows) else "no row has an answer to compare with"


class _Words:
    """Words of any script for rouge-score, whose own keep ASCII alone; the same for ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


@cache
def _rouge() -> Any:
    return _package("rouge_l", "rouge_score.rouge_scorer", "rouge-score").RougeScorer(["rougeL"], tokenizer=_Words())


@cache
def _chrf() -> Any:
    return _package("chrf", "sacrebleu.metrics.chrf", "sacrebleu").CHRF()


def _package(metric: str, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the package is there, and what it needs is not
        raise UserError(f'evaluate.metrics: {metric} needs {package}; pip install "tunesmith[eval]"') from error


SCORES: dict[str, Score] = {"token_f1": token_f1, "rouge_l": rouge_l, "chrf": chrf}
_PACKAGES: dict[str, Callable[[], Any]] = {"rouge_l": _rouge, "chrf": _chrf}


def ready(metric: str) -> Score:
    """The metric's function, its package loaded. Raises UserError where that isn't installed."""
    if metric in _PACKAGES:
        _PACKAGES[metric]()
    return SCORES[metric]
