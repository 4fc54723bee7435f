import csv

import pytest

from pipelines.config.paths import PROJECT
from pipelines.dataset.language import Languages
from pipelines.errors import UserError

SENTENCES = {
    "en": "I would like to know why my transfer has not arrived yet.",
    "de": "Ich möchte bitte mein Passwort zurücksetzen, weil ich es vergessen habe.",
    "fr": "Je voudrais savoir pourquoi mon virement n'est pas encore arrivé.",
    "es": "Quisiera saber por qué mi transferencia todavía no ha llegado.",
    "it": "Vorrei sapere perché il mio bonifico non è ancora arrivato.",
}


@pytest.fixture(scope="module")
def english() -> Languages:
    return Languages(["en"], 0.9)


@pytest.mark.parametrize("language", SENTENCES)
def test_each_language_is_foreign_to_the_others_and_not_to_itself(language: str) -> None:
    languages = Languages([language], 0.9)
    found = {other: languages.foreign(sentence) for other, sentence in SENTENCES.items()}
    assert found == {other: None if other == language else other for other in SENTENCES}


def test_several_languages_may_be_wanted() -> None:
    both = Languages(["en", "de"], 0.9)
    assert [both.foreign(sentence) for sentence in SENTENCES.values()] == [None, None, "fr", "es", "it"]


@pytest.mark.parametrize("text", ["card", "hi", "ok", "", "12345", "PIN?", "Où est ma carte ?", "¿?", "👍"])
def test_a_text_too_short_to_tell_is_let_through(english: Languages, text: str) -> None:
    assert english.foreign(text) is None


def test_numbers_and_code_are_no_other_language() -> None:
    text = "0x1F 4096 3.14159 2718 1024 65536 0xFF 17 42 299792458 " * 4
    assert Languages(["en"], 0.0).foreign(text) is None


def test_less_certainty_finds_shorter_texts() -> None:
    text = "¿Dónde está mi tarjeta?"
    assert Languages(["en"], 0.95).foreign(text) is None
    assert Languages(["en"], 0.5).foreign(text) == "es"


def test_no_real_english_query_is_left_out(english: Languages) -> None:
    with (PROJECT / "data/banking77/test.csv").open(encoding="utf-8", newline="") as stream:
        queries = [record["text"] for record in csv.DictReader(stream)]
    assert len(queries) == 3_080
    assert [query for query in queries if english.foreign(query)] == []


def test_an_unknown_code_is_named_with_the_valid_ones() -> None:
    with pytest.raises(UserError, match=r"^prepare\.filters\.languages: expected codes among af, .*, zu, got 'xx'"):
        Languages(["en", "xx"], 0.9)
    with pytest.raises(UserError, match=r"got 'jp'; nearest valid name: \w\w$"):
        Languages(["jp"], 0.9)
