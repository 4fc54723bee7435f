import socket
import sys
from collections import Counter

import pytest
from rouge_score.rouge_scorer import RougeScorer

from pipelines.dataset.row import Row
from pipelines.errors import UserError
from pipelines.evaluation import free_text
from pipelines.evaluation.free_text import chrf, needs, ready, references, rouge_l, token_f1


def make_row(answer: str, said: str | None = None, accepted: list[str] | None = None) -> Row:
    completion = [] if said is None else [{"role": "assistant", "content": said}]
    prompt = [{"role": "user", "content": "?"}]
    return Row("r0", "demo", prompt, completion, answer, "", "demo.jsonl:1", "g0", accepted=accepted)


def test_token_f1_as_counted_by_hand() -> None:
    # Of "quick brown fox" and "quick fox jumps high", two words are shared: 2 * 2 / (3 + 4).
    assert token_f1("The quick, brown fox.", ["a quick fox jumps high"]) == pytest.approx(4 / 7)
    assert token_f1("no no no", ["no no yes"]) == pytest.approx(2 / 3)
    assert token_f1("Paris", ["London", "in Paris", "Rome"]) == pytest.approx(2 / 3)
    assert token_f1("cat", ["dog"]) == 0.0


def test_token_f1_normalises_as_squad_does() -> None:
    assert token_f1("  AN Apple!", ["the apple"]) == 1.0
    assert token_f1("U.S.A.", ["usa"]) == 1.0
    assert token_f1("theatre", ["atre"]) == 0.0
    assert token_f1("The.", ["!"]) == 1.0
    assert token_f1("the", ["apple"]) == 0.0
    assert token_f1("apple", [""]) == 0.0


def longest_shared(a: list[str], b: list[str]) -> int:
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if x == y else max(lengths[i][j + 1], lengths[i + 1][j])
    return lengths[-1][-1]


TEXTS = [
    "The cat sat on the mat.",
    "On the mat, the cat sat",
    "cats_and dogs: 3 of 4 don't agree",
    "Dogs, of 3 cats, agree",
    "nothing alike whatsoever",
    "",
]


@pytest.mark.parametrize("answer", TEXTS)
@pytest.mark.parametrize("reference", TEXTS)
def test_rouge_l_of_ascii_is_rouge_scores_own(answer: str, reference: str) -> None:
    expected = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert rouge_l(answer, [reference]) == pytest.approx(expected)


def test_rouge_l_as_counted_by_hand() -> None:
    a, b = ["police", "killed", "the", "gunman"], ["the", "gunman", "police", "killed"]
    assert rouge_l(" ".join(a), [" ".join(b)]) == pytest.approx(2 * longest_shared(a, b) / 8)
    assert rouge_l("the gunman", ["x", "the gunman police", "the y z"]) == pytest.approx(2 * 2 / 5)


def test_rouge_l_reads_words_of_any_script() -> None:
    assert rouge_l("größer als der Hund", ["größer als die Katze"]) == pytest.approx(0.5)
    assert rouge_l("Москва столица", ["москва"]) == pytest.approx(2 / 3)


def test_chrf_as_counted_by_hand() -> None:
    # Letters of "abc" in "abd" (spaces don't count): 2 of 3, ab: 1 of 2, no trigram: precision and recall 7 / 18.
    assert chrf("a bc", ["ab d"]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    answer, reference = "abcdefgh", "abcd"
    precision, recall = [], []
    for n in range(1, 5):
        given = Counter(answer[i : i + n] for i in range(9 - n))
        wanted = Counter(reference[i : i + n] for i in range(5 - n))
        precision.append((given & wanted).total() / given.total())
        recall.append((given & wanted).total() / wanted.total())
    p, r = sum(precision) / 4, sum(recall) / 4
    assert chrf(answer, [reference]) == pytest.approx(5 * p * r / (4 * p + r))
    assert chrf("same", ["other", "same"]) == 1.0
    assert chrf("", ["abc"]) == 0.0


def test_references_are_the_completion_or_the_answer_and_what_else_is_right() -> None:
    assert references(make_row("42", "It is 42.")) == ["It is 42."]
    assert references(make_row("42")) == ["42"]
    assert references(make_row("42", "")) == ["42"]
    assert references(make_row("42", accepted=["42", "forty-two", " "])) == ["42", "forty-two"]
    assert references(make_row("", "")) == []


def test_rows_without_any_reference_are_told() -> None:
    assert needs([make_row(""), make_row("", " ")]) == "no row has an answer to compare with"
    assert needs([make_row(""), make_row("x")]) is None


@pytest.mark.parametrize(
    ("metric", "module", "package"), [("rouge_l", "rouge_score", "rouge-score"), ("chrf", "sacrebleu", "sacrebleu")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, metric: str, module: str, package: str) -> None:
    for cached in (free_text._rouge, free_text._chrf):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name.partition(".")[0] == module:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(UserError) as caught:
        ready(metric)
    assert str(caught.value) == f'evaluate.metrics: {metric} needs {package}; pip install "tunesmith[eval]"'
    assert ready("token_f1") is token_f1


def test_nothing_is_fetched_or_said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for cached in (free_text._rouge, free_text._chrf):
        cached.cache_clear()
    for metric in free_text.SCORES:
        assert ready(metric)("the answer", ["the answer"]) == 1.0
    assert capfd.readouterr() == ("", "")
